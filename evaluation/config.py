"""Settings of every evaluation: what each command asks for, with its limits.

Nothing here imports a network, so that ``--help`` and wrong options are answered at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

from dino_oct.data.index import HeldOut, LongerSide, Micrometres, Reading, WhiteValue
from dino_oct.data.phantom_config import Depth, Eyes, Patients, PictureSide, ScansPerPatient, Slices, Visits
from dino_oct.limits import (
    BatchSize,
    Blocks,
    Device,
    Epochs,
    Heads,
    Items,
    MaskValues,
    Name,
    Neighbours,
    NewName,
    NewPath,
    Ordered,
    PositiveShare,
    Range,
    Resamples,
    Scans,
    Seed,
    Share,
    Side,
)

Protocol = Literal["squash", "dino"]
Precision = Literal["fp32", "bf16"]
Reader = Literal["author", "clinician"]
Head = Literal["own", "probe", "prototype"]
FEWEST = 5  # scans: with fewer, UMAP's spectral start is not defined
SCORES = ("pointing", "energy", "enrichment", "rank_accuracy", "auprc", "iou_otsu", "iou_mass")
ALL_SCORES = (*SCORES, "iou_tuned", "energy_retina", "lesion_over_retina")
CamMethod = Literal["gradcam", "gradcam++", "hirescam", "eigencam"]
Fill = Literal["black", "mean", "blur", "neighbours"]
RelevanceMethod = Literal["gradient", "lrp", "rollout"]
MethodName = Literal[
    "attention", "rollout", "relevance", "lrp", "gradcam", "gradcam++", "hirescam", "eigencam", "occlusion"
]
ATTENTION = "attention"
METHODS_BY_DEFAULT = ("attention", "relevance", "gradcam", "occlusion")
SomeScans = Annotated[int, Range(0, 100_000)]
VoteTemperature = Annotated[float, Range(above=0)]
Figure = Literal["5", "6", "7", "9"]
FIGURES: dict[str, tuple[MethodName, ...]] = {"5": ("gradcam",), "6": ("occlusion",), "7": ("lrp",), "9": (ATTENTION,)}


@dataclass
class DatasetOptions(Reading):
    """How the scans of --data are read (table, columns, pattern, layout: of --data alone), split and cached; the rest
    unset: as in training."""

    split: Literal["patient", "official", "auto"] | None = None
    """official: the folders train/val/test; patient: by a hash of the patient; auto: the folders unless patients are
    known to be in two of them. Unset, on the run's own data: the run's own table (scans.csv)."""
    split_seed: Seed | None = None
    """Seed of the patient split."""
    val_fraction: HeldOut | None = None
    """Share of the patients kept for validation (patient split)."""
    test_fraction: HeldOut | None = None
    """Share of the patients kept for the test (patient split)."""
    neutralise_borders: bool | None = None
    """Replace white borders by the scan's own dark background."""
    pixel_um: list[Micrometres] | None = None
    """Height and width of a pixel, in µm, that scans of known size are resampled to; no number: as they are."""
    anonymise: bool | None = None
    """Show pseudonyms in place of the names of files, folders and patients."""
    max_side: LongerSide | None = None
    """Larger scans are scaled down to this longer side, in pixels."""
    grey_range: WhiteValue | None = None
    """Grey value that is white in 16-bit, 32-bit and float images; auto: decided over all of them."""
    cache_dir: str | None = None
    """Folder of the decode-once cache."""


@dataclass
class PhantomOptions:
    """Which phantoms '--data phantom' means; unset: those of training."""

    patients: Patients | None = None
    """Number of patients."""
    scans_per_patient: ScansPerPatient | None = None
    """Scans of each patient."""
    size: tuple[PictureSide, PictureSide] | None = None
    """Height and width of a scan, in pixels."""
    seed: Seed | None = None
    """Seed; another one gives other eyes."""
    depth: Depth | None = None
    """Share of the axial range shown, .4 to 1."""
    slices: Slices | None = None
    """Scans of a volume. More than one slice, eye or visit draws volumes instead of single scans."""
    eyes: Eyes | None = None
    """Eyes of each patient, 1 or 2."""
    visits: Visits | None = None
    """Visits of each eye, 1 to 10."""


@dataclass
class DataOptions:
    """Models, scans, and what is drawn of them."""

    model: tuple[Name, ...] = ()
    """Runs, exports, files of weights, timm:NAME, timm:NAME@FILE or random:NAME, each once; unset: the newest run under
    runs/. Data and settings are those of the first."""
    data: Name | None = None
    """Folder of scans, a table of them, one volume, or 'phantom'; unset: the first run's own."""
    bootstrap: Resamples = 1000
    """Resamples of patients behind each 95 % interval; 0 gives none."""
    seed: Seed = 0
    """Of the resamples, and of all else that is drawn."""
    device: Device = "auto"
    """What networks compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    phantom: PhantomOptions = field(default_factory=PhantomOptions)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every model, as it is named; some commands have an older spelling beside ``model``."""
        return (*getattr(self, "models", ()), *self.model, *getattr(self, "beside", ()))

    @property
    def intervals(self) -> dict[str, int | str]:
        """How intervals are made, for the JSON file."""
        return {"unit": "patient", "resamples": self.bootstrap, "seed": self.seed}


@dataclass
class EvaluationOptions(DataOptions):
    """What every evaluation is asked for. Unset options are those that the run was trained with."""

    out: NewName | None = None
    """Folder for the results; unset: RUN/evaluation/NAME, or runs/SOURCE/evaluation/NAME where there is no run."""
    heads: Heads | None = None
    """Attention heads, for a file whose tensors do not tell; unset: 64 channels each, which is said."""


@dataclass
class ScanOptions(EvaluationOptions):
    """Which scans are shown."""

    scans: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Image files; unset: scans of --split."""
    split: Literal["test", "val", "train"] = "test"
    """Where scans are taken from if no file is given."""
    n: Scans = 8
    """Scans to take from the split, in turns through the classes, each from a new patient as long as there are any."""


@dataclass
class MaskOptions:
    """Where lesions are."""

    masks: Name | None = None
    """Folder of lesion masks, DIR/SPLIT/CLASS/NAME.png in the size of the scans; unset: masks/ beside the splits, as
    phantoms have it."""
    lesion_values: MaskValues = ()
    """Values of the lesion in a mask, any of several labels; unset: 255 for phantoms, else all but 0 and
    --retina-values."""
    retina_values: MaskValues = ()
    """Values of the retina outside lesions; unset: 128 for phantoms, else the retina is estimated from the scan."""

    @property
    def are_masks_given(self) -> bool:
        """Whether any of these is."""
        return bool(self.masks or self.lesion_values or self.retina_values)


class Kind(NamedTuple):
    """Which features of a backbone.

    Attributes:
        blocks: CLS of the last n blocks; 0: see below.
        mean_patch: interleave the last block's CLS with its mean patch token; with 0 blocks the mean patch token alone.

    0 blocks without the mean patch token mean the image feature: CLS, or a CNN's vector before the classifier.
    """

    blocks: int = 0
    mean_patch: bool = False


IMAGE_FEATURE = Kind()


Features = Literal["cls", "mean-patch", "cls+mean-patch", "blocks"]


def kind_of(features: Features | None, n_blocks: int) -> Kind | None:
    """The features that are asked for by name; None where they are not."""
    kinds = {
        "cls": IMAGE_FEATURE,
        "mean-patch": Kind(0, mean_patch=True),
        "cls+mean-patch": Kind(1, mean_patch=True),
        "blocks": Kind(n_blocks),
    }
    return kinds[features] if features else None


@dataclass
class FeatureOptions(EvaluationOptions):
    """Which features, of images of which size."""

    image_size: tuple[Side, Side] | None = None
    """Rows and columns of the images; unset: the run's monitor.image_size, or the model's own size."""
    preprocessing: Protocol = "squash"
    """squash: the whole scan, resized; dino: short side to 256/224 of image-size, then the central square."""
    features: Features | None = None
    """cls: after the final norm (CNNs: the vector before the classifier); mean-patch: mean patch token; blocks: CLS of
    the last n-blocks."""
    n_blocks: Blocks = 4
    """Of features 'blocks'."""
    precision: Precision = "fp32"
    """Of the extraction; bf16 is faster where the processor has it, and changes features slightly."""
    controls: bool = True
    """Also evaluate what the model must beat: its starting weights, random weights and raw pixels."""

    def kind(self) -> Kind | None:
        """The features asked for; None where the evaluation chooses."""
        return kind_of(self.features, self.n_blocks)


@dataclass
class ClassTargetOptions(EvaluationOptions):
    """Whose logits are explained."""

    beside: tuple[Name, ...] = ()
    """Further models: an older spelling of several names after --model."""
    classifier: Head | None = None
    """own: the model's; probe: a linear probe of its features; prototype: cosine to each class's mean feature. Unset:
    own where the model has one with class names, else probe."""
    image_size: tuple[Side, Side] | None = None
    """Rows and columns that scans are resized to; unset: the size that the model was trained or judged at."""


@dataclass
class ExplanationOptions(ScanOptions, ClassTargetOptions):
    """Which classifiers explain which class of which scans."""

    target: Name = "predicted"
    """The class to explain: predicted (by each model), true, or a class name."""


@dataclass
class KnnOptions(FeatureOptions):
    """k-NN classification on frozen features, with patient-bootstrap intervals, beside controls."""

    k: Neighbours = (5, 10)
    """Numbers of neighbours."""
    split: Literal["test", "val"] = "test"
    """Scans to classify; the training split votes."""
    temperature: VoteTemperature = 0.07
    """Of the votes exp(similarity / temperature)."""
    exclude_same_patient: bool = False
    """Leave scans of the classified scan's own patient out of the vote (for splits that share patients)."""


@dataclass
class ExternalOptions:
    """Scans from elsewhere that judge as well."""

    external: Name | None = None
    """Folder or table of labelled scans from elsewhere: they are judged as well, by what was fitted to the training
    scans. All of them count, whatever split they have."""
    external_classes: Annotated[tuple[str, ...], Items(distinct=True)] = ()
    """OWN=THEIRS for each class that is judged, such as NORMAL=NO DME=DME; unset: the classes of equal names."""

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        for entry in self.external_classes:
            if not all(entry.partition("=")):
                return "external_classes", f"'{entry}': write OWN=THEIRS, for example NORMAL=NO"
        if self.external_classes and self.external is None:
            return "external_classes", "they are classes of --external, which is not given"
        return None


@dataclass
class LinearOptions(FeatureOptions, ExternalOptions):
    """Linear probe on frozen features, with patient-bootstrap intervals, controls and label-fraction curves."""

    protocol: Literal["fast", "dino"] = "fast"
    """fast: L2 logistic regression over a range of C; dino: SGD for some epochs, on the paper's features."""
    fractions: Annotated[tuple[PositiveShare, ...], Items(1)] = (0.01, 0.05, 0.1, 1.0)
    """Shares of the training patients whose labels are used, each above 0 and up to 1 (at least one of each class)."""
    draws: Annotated[int, Range(1, 1000)] = 3
    """Random choices of these patients at each fraction."""
    c_range: Annotated[tuple[float, float], Range(1e-10, 1e10), Ordered()] = (1e-5, 1e2)
    """Smallest and largest C of the fast protocol."""
    n_c: Annotated[int, Range(1, 1000)] = 20
    """Values of C, evenly in the logarithm. In the ridge regression of a target, 1/C is the penalty."""
    epochs: Epochs = 100
    """Of the dino protocol."""
    split: Literal["test", "val"] = "test"
    """Scans to classify. With val the setting is chosen and judged on the same scans: for development only."""

    @property
    def cs(self) -> list[float]:
        """Values of C, from the smallest."""
        return np.logspace(*np.log10(self.c_range), self.n_c).tolist()


@dataclass
class EmbeddingMapOptions(FeatureOptions):
    """UMAP maps of frozen features side by side, with numbers measured on the features themselves."""

    beside: tuple[Name, ...] = ()
    """Further models: an older spelling of several names after --model."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Scans to map."""
    unit: Literal["scan", "volume", "eye", "patient"] = "scan"
    """What a point is: a scan, or a volume, eye or patient, by the mean of the features of its scans."""
    neighbours: Annotated[int, Range(2, 10_000)] = 15
    """UMAP's n_neighbors."""
    min_dist: Share = 0.1
    """UMAP's min_dist."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """UMAP's distance between features."""
    seeds: Annotated[int, Range(1, 100)] = 3
    """UMAP seeds, from --seed on: the first is drawn, all are compared."""
    k: Annotated[int, Range(1, 10_000)] = 10
    """Neighbours of purity, trustworthiness and the overlap of seeds."""
    max_scans: Annotated[int, Range(FEWEST, 1_000_000)] = 5000
    """Of more scans (or volumes, eyes, patients), so many are drawn by seed."""
    animate: bool = False
    """Also map every checkpoint of the run, as a GIF and on the page."""
    frames: Annotated[int, Range(2, 1000)] = 16
    """Of the animation at most; evenly chosen, first and last always."""
    projector: bool = True
    """Also write the features for TensorBoard's projector."""


@dataclass
class AttentionOptions(ScanOptions):
    """CLS attention per head of some scans: overlays, maps, masks, and how widely each head spreads."""

    volumes: Annotated[int, Range(0, 1000)] = 0
    """Whole volumes to take from the split in place of --n scans: a page each, slices side by side, mean of heads."""
    block: Annotated[int, Range(-1000, 1000)] = -1
    """Transformer block, from 0, or negative from the last."""
    attention_size: Annotated[Side | None, tyro.conf.arg(aliases=["--size"])] = None
    """Short side of the network's input, in pixels; unset: the run's monitor.attention_size, or 480."""
    mass: PositiveShare = 0.6
    """Share of the attention to patches that a mask holds, in (0, 1]."""

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        given = "image files are given as well; give one of them"
        return next(((name, given) for name in ("data", "volumes") if self.scans and getattr(self, name)), None)


@dataclass
class GradcamOptions(ExplanationOptions):
    """Where a class's logit comes from, by the last feature map that has positions."""

    methods: Annotated[tuple[CamMethod, ...], Items(1, distinct=True)] = ("gradcam",)
    """One row of a page each; eigencam is the same for every class."""


@dataclass
class OcclusionOptions(ExplanationOptions):
    """Signed occlusion maps of every class, and the masks whose hiding speaks most for the explained one."""

    window: PositiveShare = 0.2
    """Rows and columns of the window as a share of the image's."""
    stride: PositiveShare = 0.25
    """Step of the window as a share of the window."""
    fill: Fill = "neighbours"
    """What hides: neighbours continues each row from the pixels beside the window; blur; mean of the scan; black."""
    batch_size: BatchSize = 64
    """Hidden scans per forward pass."""


@dataclass
class RelevanceOptions(ExplanationOptions):
    """Which patches a class's logit rests on, followed through the attention of a vision transformer."""

    methods: Annotated[tuple[RelevanceMethod, ...], Items(1, distinct=True), tyro.conf.arg(aliases=["--method"])] = (
        "gradient",
    )
    """gradient: attention × its gradient (Chefer et al., ICCV 2021); lrp: with layer-wise relevance in place of
    attention (CVPR 2021, patented); rollout: attention alone."""
    start_layer: Annotated[int, Range(0, 1000)] = 0
    """Lowest transformer block that is followed, from 0."""


@dataclass
class MapOptions(MaskOptions):
    """Which maps."""

    methods: Annotated[tuple[MethodName, ...], Items(1, distinct=True)] = METHODS_BY_DEFAULT
    """Explanation maps; those that a model cannot have leave a gap with the reason. lrp is patented."""
    attention_size: Side | None = None
    """Short side in pixels of the scans that attention is computed on; unset: a pretraining's monitor.attention_size,
    else what the classifier sees."""


@dataclass
class LocalizationOptions(MapOptions, ClassTargetOptions):
    """Maps of every method and model scored against lesion masks, with patient-bootstrap intervals."""

    target: Literal["true", "predicted"] = "true"
    """The class to explain."""
    score: Literal[ALL_SCORES] = "auprc"
    """Ranks the rows and chooses attention heads (on validation patients)."""
    n: SomeScans = 144
    """Test scans with a lesion, in turns through classes and patients, and half as many validation scans; 0: all."""
    attention_blocks: Literal["last", "all"] = "last"
    """Whose heads may be chosen."""
    window: PositiveShare = 0.2
    """Occlusion: rows and columns of the window as a share of the image's."""
    stride: PositiveShare = 0.5
    """Occlusion: step of the window as a share of the window."""
    fill: Fill = "neighbours"
    """Occlusion: what hides, as in dino-oct occlusion."""
    faithfulness: SomeScans = 16
    """Test scans for deletion and insertion; 0: none."""
    sanity: SomeScans = 12
    """Test scans for the weight randomisation test; 0: none."""
    pages: SomeScans = 3
    """Pages of maps to draw: scans of median score, one for each class in turn; 0: none."""


@dataclass
class SideBySideOptions(MapOptions, ExplanationOptions):
    """Pages of maps: one scan each, a row for each method, a column for each model."""

    figure: Figure | None = None
    """A figure of the paper instead of --methods; 9 shows every attention head."""

    def __post_init__(self):
        if self.figure:
            self.methods = FIGURES[self.figure]

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if self.masks and self.scans:
            return "masks", "image files are given as well; masks belong to scans of a data folder"
        return None


@dataclass
class PredictOptions(DataOptions):
    """Classes, calibrated probabilities and prediction sets of new scans, as a table and a page."""

    model: tyro.conf.Positional[Name] = ""  # type: ignore[assignment]
    """Run, export, file of weights, timm:NAME or timm:NAME@FILE."""
    scans: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Image files and volumes, or one folder or table."""
    out: NewPath = Path("predictions")
    """Folder for predictions.csv, predictions.json and predictions.html."""
    data: Name | None = None
    """Labelled scans that a classifier is fitted to and calibrated on; unset: the run's own."""
    classifier: Literal["own", "probe"] | None = None
    """own: the model's; probe: a linear probe of its features. Unset: own where the model has one with class names."""
    refit: bool = False
    """Fit and calibrate anew, though a classifier is kept beside the run."""
    coverage: Annotated[float, Range(above=0, below=1)] = 0.9
    """Share of the scans of new patients whose set of classes holds the true one."""
    format: Literal["csv", "parquet"] = "csv"
    """Of the tables."""
    page: Annotated[int, Range(0, 2000)] = 200
    """Scans on the page, those that are unlike anything seen or uncertain first; 0: no page."""
    method: MethodName | None = None
    """Map over the scans of the page; unset: attention of transformers, Grad-CAM of other networks."""
    batch_size: BatchSize = 32
    """Scans per pass."""
    precision: Precision = "fp32"
    """Of the network."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The model."""
        return (self.model,)

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if not self.model or not self.scans:
            return "scans", "expected a model and scans: predict MODEL SCAN …"
        return None


@dataclass
class EmbedOptions:
    """Features of any scans, with their file names and what else is known of them, as one file."""

    model: tyro.conf.Positional[str] = ""
    """Run, export, file of weights, timm:NAME, timm:NAME@FILE or random:NAME."""
    scans: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Image files and volumes, or one folder or table."""
    out: NewPath = Path("embeddings.npz")
    """File: .npz, .csv or .parquet."""
    features: Features = "cls"
    """cls: after the final norm (CNNs: the vector before the classifier); mean-patch: mean patch token; blocks: CLS of
    the last n-blocks."""
    n_blocks: Blocks = 4
    """Of features 'blocks'."""
    image_size: tuple[Side, Side] | None = None
    """Rows and columns of the images; unset: the run's monitor.image_size, or the model's own size."""
    preprocessing: Protocol = "squash"
    """squash: the whole scan, resized; dino: short side to 256/224 of image-size, then the central square."""
    precision: Precision = "fp32"
    """Of the network; bf16 is faster where the processor has it, and changes features slightly."""
    batch_size: BatchSize = 32
    """Scans per pass."""
    heads: Heads | None = None
    """Attention heads, for a file whose tensors do not tell; unset: 64 channels each, which is said."""
    device: Device = "auto"
    """What networks compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    phantom: PhantomOptions = field(default_factory=PhantomOptions)

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if not self.model or not self.scans:
            return "scans", "expected a model and scans: embed MODEL SCAN …"
        if self.out.suffix not in (".npz", ".csv", ".parquet"):
            return "out", "must end in .npz, .csv or .parquet"
        return None


Format = Literal["timm", "hf", "onnx", "torch-export", "card"]


@dataclass
class ExportOptions:
    """Write a network for other programs: timm, Hugging Face, ONNX, torch.export. Each is read back and compared."""

    model: tyro.conf.Positional[str] = ""
    """Run, export, file of weights, timm:NAME, timm:NAME@FILE or random:NAME."""
    format: Annotated[tuple[Format, ...], Items(1, distinct=True)] = ("hf",)
    """timm: folder for timm.create_model; hf: the same as a Hugging Face repository, with model card; onnx;
    torch-export; card: the model card alone."""
    out: NewPath = Path("exported")
    """Folder; each format has a folder of its own in it."""
    output: Literal["features", "logits"] | None = None
    """Unset: logits where there is a classifier (the model's, or the one that predict keeps beside a run)."""
    image_size: tuple[Side, Side] | None = None
    """Rows and columns of the images; unset: the size that the model was trained or judged at."""
    attention: bool = False
    """Also give the attention from CLS to the patches in the last block, as second output (onnx, torch-export)."""
    heads: Heads | None = None
    """Attention heads, for a file whose tensors do not tell; unset: 64 channels each, which is said."""

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if not self.model:
            return "model", "expected a model: export MODEL"
        if self.attention and not {"onnx", "torch-export"} & set(self.format):
            return "attention", "it is an output of --format onnx and torch-export"
        return None


@dataclass
class ComparisonOptions(MaskOptions, ExternalOptions, DataOptions):
    """Compare models on the same test scans: one page, numbers as JSON and CSV, figures as PNG and SVG."""

    models: tyro.conf.Positional[tuple[Name, ...]] = ()
    """An older spelling of --model."""
    model: tuple[Name, ...] = ()
    """Runs, exports, checkpoints (RUN/checkpoints/start: the weights before training), files of weights, timm:NAME,
    timm:NAME@FILE or random:NAME; each once. Unset: the newest run under runs/ beside its start."""
    out: NewPath = Path("report")
    """Folder for report.html, results.json, results.csv, figures/ and the cache of finished steps."""
    k: Neighbours = (5, 10)
    """Numbers of neighbours of k-NN."""
    temperature: VoteTemperature = 0.07
    """Of k-NN's votes exp(similarity / temperature)."""
    methods: Annotated[tuple[MethodName, ...], Items(1, distinct=True)] = METHODS_BY_DEFAULT
    """Explanation maps, for the models that can give them. lrp is patented."""
    leaderboard: Annotated[SomeScans, tyro.conf.arg(aliases=["--league"])] = 96
    """Test scans with a lesion on which maps are scored against the masks; 0: no leaderboard."""
    cases: Annotated[int, Range(0, 1000)] = 8
    """Scans of the case viewer, in turns: drawn by seed, best, median and worst of the model that validation chose."""
    volumes: Annotated[int, Range(0, 1000)] = 4
    """Volumes of these cases that the viewer goes through slice by slice; 0: the cases alone."""
    slices: Annotated[int, Range(2, 1000)] = 25
    """Slices shown of each such volume at most, evenly spread, the case always among them."""
    reader: Annotated[Reader, tyro.conf.arg(aliases=["--for"])] = "author"
    """clinician: also write a short page, clinician.html, without tables, scores of maps, label errors and methods."""
