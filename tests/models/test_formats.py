"""Files of every format of vision transformers give the features that timm gives for them, or are refused."""

import contextlib
import io

import pytest
import timm
import torch
from conftest import REAL_SCANS
from timm.models import vision_transformer

from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone
from dino_oct.models.network import cls_feature

WEIGHTS = REAL_SCANS.parent / "weights" / "dinov2_vits14_pretrain.pth"
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1}
TWO_HEADS = {**SMALL, "embed_dim": 128, "num_heads": 2}


def randomised(name, **args):
    """A timm model of which every parameter is drawn, so that each of them shows in the features."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=0, **args).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2).add_(0.3 if parameter.ndim == 1 else 0.0)
    return model


def dinov2_names(state, registers=0):
    """timm's names and position embedding to those of the DINOv2 release."""
    state = dict(state)
    if registers:
        cls = torch.randn(1, 1, state["cls_token"].shape[-1])
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([cls, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - cls
    state["mask_token"] = torch.randn(1, state["cls_token"].shape[-1])
    return state


def swiglu_names(state):
    return {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in state.items()}


def chunked(state):
    """As DINOv2's trainer writes blocks."""
    return {n.replace("blocks.", "blocks.0." if "blocks.0." in n else "blocks.1.", 1): t for n, t in state.items()}


def dinov3_names(model):
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        name = name.replace("mlp.fc1_g", "mlp.w1").replace("mlp.fc1_x", "mlp.w2")
        state[name.replace("mlp.fc2", "mlp.w3") if "mlp.fc1_g.weight" in str(model.state_dict().keys()) else name] = (
            tensor
        )
    state["storage_tokens"] = state.pop("reg_token")
    for i in range(len(model.blocks)):
        q, v = (state.pop(f"blocks.{i}.attn.{part}_bias", None) for part in "qv")
        if q is not None:
            state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, torch.nan), v])
            state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat(
                [torch.ones_like(q), torch.zeros_like(q), torch.ones_like(v)]
            )
    state["mask_token"] = torch.randn(1, 1, model.embed_dim)
    state["rope_embed.periods"] = model.rope.periods.bfloat16()
    return state


def of_timm(name, rename=lambda state: state, **args):
    def make():
        model = randomised(name, **args)
        return model, rename(model.state_dict())

    return make


def mae_pretrained():
    model = randomised("vit_base_patch16_224", img_size=64, **SMALL)
    width = model.embed_dim
    decoder = {"mask_token": torch.randn(1, 1, 32), "decoder_pos_embed": torch.randn(1, 17, 32),
               "decoder_embed.weight": torch.randn(32, width), "decoder_blocks.0.norm1.weight": torch.randn(32),
               "decoder_norm.weight": torch.randn(32), "decoder_pred.weight": torch.randn(9, 32)}  # fmt: skip
    return model, {"model": {**model.state_dict(), **decoder}, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}


def mae_finetuned():
    model = randomised("vit_base_patch16_224", img_size=64, global_pool="avg", **SMALL)
    return model, {"model": {**model.state_dict(), "head.weight": torch.randn(5, 64), "head.bias": torch.randn(5)}}


def dinov3(name, **args):
    def make():
        model = randomised(name, img_size=64, global_pool="token", **args)
        return model, dinov3_names(model)

    return make


V14 = {"img_size": 70, "patch_size": 14}
FORMATS = {
    "DINO": of_timm("vit_base_patch16_224", img_size=64, **SMALL),
    "DINOv2": of_timm("vit_small_patch14_dinov2", dinov2_names, **V14, **SMALL),
    "DINOv2, registers": of_timm("vit_small_patch14_reg4_dinov2", lambda s: dinov2_names(s, 4), **V14, **SMALL),
    "DINOv2, SwiGLU": of_timm(
        "vit_giant_patch14_dinov2", lambda s: swiglu_names(dinov2_names(s)), **V14, **SMALL, mlp_ratio=172 * 2 / 64
    ),
    "DINOv2, SwiGLU and registers": of_timm(
        "vit_giant_patch14_reg4_dinov2", lambda s: swiglu_names(dinov2_names(s, 4)), **V14, **SMALL, mlp_ratio=2
    ),
    "DINOv2's trainer": of_timm(
        "vit_small_patch14_dinov2",
        lambda s: {
            "teacher": {f"backbone.{n}": t for n, t in chunked(dinov2_names(s)).items()}
            | {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.mlp.0.weight": torch.ones(2, 2)}
        },
        **V14,
        **SMALL,
    ),
    "timm's registers": of_timm("vit_small_patch14_reg4_dinov2", **V14, **SMALL),
    "registers with positions": of_timm("vit_base_patch16_224", img_size=64, reg_tokens=2, **SMALL),
    "query and key norms": of_timm("vit_base_patch16_224", img_size=64, qk_norm=True, **TWO_HEADS),
    "MAE": mae_pretrained,
    "MAE, fine-tuned": mae_finetuned,
    "no CLS": of_timm(
        "vit_base_patch16_224", img_size=64, class_token=False, global_pool="avg", fc_norm=False, **SMALL
    ),
    "no CLS, norm after the mean": of_timm(
        "vit_base_patch16_224", img_size=64, class_token=False, global_pool="avg", **SMALL
    ),
    "no bias of queries": of_timm("vit_base_patch16_224", img_size=64, qkv_bias=False, **SMALL),
    "norms within": of_timm("vit_base_patch16_224", img_size=64, scale_attn_norm=True, scale_mlp_norm=True, **SMALL),
    "norm before": of_timm("vit_base_patch16_clip_224", img_size=64, **SMALL),
    "DeiT-III": of_timm(
        "deit3_small_patch16_224",
        lambda s: {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for n, t in s.items()},
        img_size=64,
        **SMALL,
    ),
    "one channel, odd mlp": of_timm("vit_base_patch16_224", img_size=64, in_chans=1, mlp_ratio=2.69, **SMALL),
    "DINOv3": dinov3("vit_small_patch16_dinov3_qkvb", **TWO_HEADS),
    "DINOv3, no bias": dinov3("vit_small_patch16_dinov3", **TWO_HEADS),
    "DINOv3, SwiGLU": dinov3("vit_small_plus_patch16_dinov3_qkvb", **TWO_HEADS),
    "DINOv3 of timm": of_timm("vit_small_patch16_dinov3_qkvb", img_size=64, global_pool="token", **TWO_HEADS),
}


NAMES = {
    **dict.fromkeys(("DINOv2", "DINOv2, registers", "DINOv2, SwiGLU", "DINOv2, SwiGLU and registers"), "DINOv2"),
    **dict.fromkeys(("DINOv3", "DINOv3, no bias", "DINOv3, SwiGLU"), "DINOv3"),
    "DINO": "DINO or timm",
    "DINOv2's trainer": "DINOv2",
    "MAE": "MAE",
    "MAE, fine-tuned": "MAE or timm",
    "DeiT-III": "DeiT-III",
    "one channel, odd mlp": "DINO or timm",
    "no bias of queries": "DINO or timm",
}


@pytest.mark.parametrize("name", FORMATS)
def test_features_are_timms(name, tmp_path):
    model, checkpoint = FORMATS[name]()
    torch.save(checkpoint, tmp_path / "weights.pth")
    loaded = load_backbone(str(tmp_path / "weights.pth")).eval()
    side = 70 if model.patch_embed.patch_size[0] == 14 else 64
    images = torch.randn(2, model.in_chans, side, side)
    with torch.no_grad():
        torch.testing.assert_close(cls_feature(loaded, images), model(images), rtol=1e-5, atol=1e-5)
    assert loaded.load_report.matched == len(loaded.state_dict())
    assert loaded.load_report.format == NAMES.get(name, "timm")


@pytest.mark.parametrize("name", ["DINOv2", "DINOv2, registers", "DINOv2, SwiGLU", "DINOv3", "DINOv3, SwiGLU", "MAE"])
def test_every_tensor_counts(name, tmp_path):
    """A file with one tensor more, or one less, than the format has is refused, and the message names it."""
    _, checkpoint = FORMATS[name]()
    tensors = checkpoint.get("model", checkpoint)
    for key in tensors:
        if key.startswith(("mask_token", "decoder", "rope", "register")) or "bias_mask" in key:
            continue
        torch.save({n: t for n, t in tensors.items() if n != key}, tmp_path / "less.pth")
        with pytest.raises(InputError):
            load_backbone(str(tmp_path / "less.pth"), heads=1 if "DINOv3" not in name else None)
    torch.save({**tensors, "blocks.1.attn.gate.weight": torch.ones(3)}, tmp_path / "more.pth")
    with pytest.raises(InputError, match=r"no place for 1 of its tensors \(blocks\.1\.attn\.gate\.weight\)"):
        load_backbone(str(tmp_path / "more.pth"))


def prefixed(state, *prefixes):
    return {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in state.items()}


OTHER = "the other copy"
WRAPPERS = {
    "module": lambda s, o: prefixed(s, "module."),
    "compiled in parallel": lambda s, o: prefixed(s, "module._orig_mod."),
    "_orig_mod.module.backbone": lambda s, o: prefixed(s, "_orig_mod.module.backbone."),
    "state_dict of a lightning model": lambda s, o: {
        "state_dict": {**prefixed(s, "model.backbone."), "model.head.weight": torch.ones(3, 64)},
        "optimizer_states": [{"state": {}}],
        "epoch": 3,
    },
    "EMA beside": lambda s, o: {"state_dict": o, "state_dict_ema": prefixed(s, "module.")},
    "no EMA yet": lambda s, o: {"model": s, "model_ema": None},
    "teacher beside student": lambda s, o: {
        "student": prefixed(o, "module.backbone."), "teacher": prefixed(s, "backbone.")
    },
    "teacher and student in one": lambda s, o: {
        "model": {**prefixed(o, "student.backbone."), **prefixed(s, "teacher.backbone.")}
    },
    "student alone": lambda s, o: {"student": prefixed(s, "module.backbone.")},
    "MoCo": lambda s, o: {
        "state_dict": {
            **prefixed(o, "module.momentum_encoder."), **prefixed(s, "module.base_encoder."),
            "module.base_encoder.head.0.weight": torch.ones(2, 64), "module.predictor.0.weight": torch.ones(2, 2),
        }
    },
    "I-JEPA": lambda s, o: {"encoder": prefixed(o, "module."), "target_encoder": prefixed(s, "module.")},
    "unknown names": lambda s, o: {"a": {"b": prefixed(s, "net.trunk.")}},
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_peeled_and_the_copy_is_said(name, tmp_path):
    model = randomised("vit_base_patch16_224", img_size=64, **SMALL)
    state = model.state_dict()
    torch.save(WRAPPERS[name](state, {n: t + 1 for n, t in state.items()}), tmp_path / "wrapped.pth")
    loaded = load_backbone(str(tmp_path / "wrapped.pth"))
    assert all(torch.equal(tensor, state[n]) for n, tensor in loaded.state_dict().items())
    report = str(loaded.load_report)
    assert "; taken: " in report
    expected = {"EMA beside": "state_dict_ema.module", "MoCo": "state_dict.module.base_encoder",
                "teacher and student in one": "model.teacher.backbone", "I-JEPA": "target_encoder.module"}  # fmt: skip
    assert expected.get(name, "") in report
    assert loaded.load_report.format == ("MoCo-v3" if name == "MoCo" else "DINO or timm")


HEAD = {
    "mlp.0.weight": torch.ones(2, 64),
    "last_layer.weight_v": torch.ones(8, 2),
    "last_layer.weight_g": torch.ones(8),
}
TRAINED = {
    "DINO": lambda s, o: {
        "student": prefixed(o, "module.backbone.") | prefixed(HEAD, "module.head."),
        "teacher": prefixed(s, "backbone.") | prefixed(HEAD, "head."),
        "dino_loss": {"center": torch.ones(1, 8)},
    },
    "iBOT": lambda s, o: {
        "student": prefixed({**o, "masked_embed": torch.ones(1, 64)}, "module.backbone."),
        "teacher": prefixed(s, "backbone.") | prefixed({**HEAD, "last_layer2.weight_v": torch.ones(8, 2)}, "head."),
        "ibot_loss": {"center": torch.ones(1, 8), "center2": torch.ones(1, 1, 8)},
    },
    "DINOv2": lambda s, o: {
        "teacher": {
            **{n.replace("blocks.", "blocks.0._checkpoint_wrapped_module."): t for n, t in
               prefixed(s, "backbone._fsdp_wrapped_module.").items()},
            "dino_head.last_layer.weight_v": torch.ones(8, 2), "ibot_head.last_layer.weight_v": torch.ones(8, 2),
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_full_checkpoints_give_the_teacher_and_name_their_format(name, tmp_path):
    state = randomised("vit_base_patch16_224", img_size=64, **SMALL).state_dict()
    torch.save(TRAINED[name](state, {n: t + 1 for n, t in state.items()}), tmp_path / "full.pth")
    loaded = load_backbone(str(tmp_path / "full.pth"))
    assert all(torch.equal(tensor, state[n]) for n, tensor in loaded.state_dict().items())
    assert f"full.pth: {name}'s format, {len(state)} tensors loaded, 0 missing, 0 unexpected" in str(loaded.load_report)


def test_heads_of_moco_v3_are_known(tmp_path):
    """Its ViT-S has 12 heads of 32 channels; no tensor tells."""
    state = timm.create_model("vit_small_patch16_224", img_size=32, depth=1, num_classes=0).state_dict()
    torch.save({"state_dict": prefixed(state, "module.base_encoder.")}, tmp_path / "moco.pth")
    loaded = load_backbone(str(tmp_path / "moco.pth"))
    assert loaded.blocks[0].attn.num_heads == 12
    assert "heads: 12 assumed, as MoCo-v3's ViT-S has" in str(loaded.load_report)


def test_a_shard_of_one_process_says_what_to_give(tmp_path):
    torch.save({"model": {"student.backbone._flat_param": torch.ones(9)}}, tmp_path / "rank_0.pth")
    with pytest.raises(InputError, match="one process's shard of a training with FSDP; give the teacher's"):
        load_backbone(str(tmp_path / "rank_0.pth"))


def test_what_lies_beside_and_is_not_known_is_refused(tmp_path):
    state = randomised("vit_base_patch16_224", img_size=64, **SMALL).state_dict()
    torch.save({**prefixed(state, "backbone."), "neck.weight": torch.ones(3)}, tmp_path / "neck.pth")
    with pytest.raises(InputError, match=r"neck\.weight beside its backbone are not known"):
        load_backbone(str(tmp_path / "neck.pth"))


def test_assumed_heads_are_said_and_those_that_tensors_tell_are_not(tmp_path):
    for name, words in (
        ("DINO", "heads: 1 assumed, 64 channels each; --heads (--model.heads) says otherwise"),
        ("DINOv3", ""),
    ):
        torch.save(FORMATS[name]()[1], tmp_path / "weights.pth")
        report = load_backbone(str(tmp_path / "weights.pth")).load_report
        assert " ".join(report.assumed) == words
        assert words in str(report)
    with pytest.raises(InputError, match="its tensors tell 2 heads, not 4"):
        load_backbone(str(tmp_path / "weights.pth"), heads=4)
    torch.save(FORMATS["DINO"]()[1], tmp_path / "weights.pth")
    assert load_backbone(str(tmp_path / "weights.pth"), heads=2).blocks[0].attn.num_heads == 2


def test_a_file_with_labels_brings_its_classifier_only_when_asked(tmp_path):
    model, checkpoint = mae_finetuned()
    torch.save(checkpoint, tmp_path / "weights.pth")
    with_own = load_backbone(str(tmp_path / "weights.pth"), num_classes=None).eval()
    assert (with_own.num_classes, with_own.load_report.classifier) == (5, "loaded")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(images) @ checkpoint["model"]["head.weight"].T + checkpoint["model"]["head.bias"]
        torch.testing.assert_close(with_own(images), logits, rtol=1e-5, atol=1e-5)
    assert load_backbone(str(tmp_path / "weights.pth")).load_report.classifier == "left out"


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the pretrained weights are not here")
def test_a_real_dinov2_file_gives_timms_features():
    with contextlib.redirect_stdout(io.StringIO()):
        plain = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).eval()
    tensors = {name: tensor.float() for name, tensor in torch.load(WEIGHTS, weights_only=True).items()}
    plain.load_state_dict(vision_transformer.checkpoint_filter_fn(tensors, plain))
    model = load_backbone(str(WEIGHTS)).eval()
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(cls_feature(model, images), plain(images), rtol=0, atol=1e-5)
    report = model.load_report
    assert (report.matched, report.missing, report.unexpected, report.left_out) == (174, (), (), ("mask_token",))
    assert "heads: 6 assumed, 64 channels each" in str(report)
    assert f"{WEIGHTS}: DINOv2's format, 174 tensors loaded, 0 missing, 0 unexpected" in str(report)
    assert model.hub_config["architecture"] == "vit_small_patch14_dinov2"


NAMED = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1], "embed_dim": 24, "num_heads": [2, 4], "img_size": 56},
    "vit_tiny_patch16_224": {"img_size": 64, **SMALL},
    "eva02_tiny_patch14_224": {"img_size": 56, **SMALL},
}


@pytest.mark.parametrize("name", NAMED)
def test_any_timm_architecture_takes_its_file(name, tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=4, **NAMED[name]).eval()
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": prefixed(plain.state_dict(), "module.")}, file)
    images = torch.randn(2, 3, *[NAMED[name].get("img_size", 64)] * 2)
    source = f"timm:{name}@{file}"
    with torch.no_grad():
        own = load_backbone(source, num_classes=None, model_args=NAMED[name]).eval()
        torch.testing.assert_close(own(images), plain(images))
        feature = plain.forward_head(plain.forward_features(images), pre_logits=True)
        torch.testing.assert_close(cls_feature(load_backbone(source, model_args=NAMED[name]).eval(), images), feature)
    assert own.load_report.source == source
    assert "taken: state_dict.module" in str(own.load_report)

    state = plain.state_dict()
    first = next(iter(state))
    torch.save({n: t for n, t in state.items() if n != first}, file)
    with pytest.raises(InputError, match="tensors are in the file"):
        load_backbone(source, model_args=NAMED[name])
    torch.save({**state, "stem.extra.weight": torch.ones(2)}, file)
    with pytest.raises(InputError, match=r"no place for 1 of its tensors \(stem\.extra\.weight\)"):
        load_backbone(source, model_args=NAMED[name])
    with pytest.raises(InputError, match="timm:NAME@"):
        load_backbone(str(file))
