"""Names of the paper's architectures.

The weights are those that the paper's year had; where timm has a model both trained on ImageNet-1k alone and first on
ImageNet-21k (22k), the latter, which exists for every size of EfficientNetV2, ConvNeXt, ViT and Swin.
"""

PAPER = {
    "ResNet18": "resnet18.tv_in1k",
    "ResNet50": "resnet50.a1_in1k",
    "ResNet101": "resnet101.a1h_in1k",
    "ResNet152": "resnet152.a1h_in1k",
    "EfficientNetV2-S": "tf_efficientnetv2_s.in21k_ft_in1k",
    "EfficientNetV2-M": "tf_efficientnetv2_m.in21k_ft_in1k",
    "EfficientNetV2-L": "tf_efficientnetv2_l.in21k_ft_in1k",
    "EfficientNetV2-XL": "tf_efficientnetv2_xl.in21k_ft_in1k",
    "ConvMixer-768/32": "convmixer_768_32.in1k",
    "ConvMixer-1024/20": "convmixer_1024_20_ks9_p14.in1k",
    "ConvMixer-1536/20": "convmixer_1536_20.in1k",
    "ConvNeXt-base": "convnext_base.fb_in22k_ft_in1k",
    "ConvNeXt-large": "convnext_large.fb_in22k_ft_in1k",
    "ConvNeXt-xlarge": "convnext_xlarge.fb_in22k_ft_in1k",
    "ViT-base/16-224": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "ViT-base/16-384": "vit_base_patch16_384.augreg_in21k_ft_in1k",
    "ViT-base/32-224": "vit_base_patch32_224.augreg_in21k_ft_in1k",
    "ViT-base/32-384": "vit_base_patch32_384.augreg_in21k_ft_in1k",
    "ViT-large/16-224": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "ViT-large/16-384": "vit_large_patch16_384.augreg_in21k_ft_in1k",
    "ViT-large/32-224": "vit_large_patch32_224.orig_in21k",  # the only weights of this size
    "ViT-large/32-384": "vit_large_patch32_384.orig_in21k_ft_in1k",
    "DeiT-base-224": "deit_base_patch16_224.fb_in1k",
    "DeiT-base-384": "deit_base_patch16_384.fb_in1k",
    "DeiT-III-large-224": "deit3_large_patch16_224.fb_in22k_ft_in1k",
    "DeiT-III-large-384": "deit3_large_patch16_384.fb_in22k_ft_in1k",
    "Swin-base-224": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "Swin-base-384": "swin_base_patch4_window12_384.ms_in22k_ft_in1k",
    "Swin-large-224": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "Swin-large-384": "swin_large_patch4_window12_384.ms_in22k_ft_in1k",
}
"""Name in the paper → timm's name with the tag of the weights."""
