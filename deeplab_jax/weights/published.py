"""Published weights by name: what each file is, where it stands, and what its authors report.

Files and figures are those that the authors state: torchvision's `Weights` entries, the tables of encoders of timm and
segmentation_models_pytorch, the model zoos of TensorFlow's DeepLab and of mmsegmentation, and KerasHub's presets.
`by_name` fetches and converts what the table names.
"""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from deeplab_jax.files import sha256_of
from deeplab_jax.labels import ADE20K, CITYSCAPES, VOC, LabelSet

PYTORCH = "https://download.pytorch.org/models/"
TENSORFLOW = "https://storage.googleapis.com/download.tensorflow.org/models/"
TENSORFLOW_PLAIN = "http://download.tensorflow.org/models/"
"""The authors' own address of the same files, which has no encrypted form."""
MMSEGMENTATION = "https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/"
HUGGING_FACE = "https://huggingface.co/"
KAGGLE = "https://www.kaggle.com/api/v1/models/"
IMAGENET = "ImageNet-1k"
COCO_AS_VOC = "COCO train2017, VOC's classes"
VOC_AUG, COCO_VOC_AUG, COCO_VOC_ALL = "VOC train_aug", "COCO, then VOC train_aug", "COCO, then VOC trainval"
CITYSCAPES_TRAIN, ADE20K_TRAIN = "Cityscapes train", "ADE20K train"
LABELS: dict[str, LabelSet] = {
    **dict.fromkeys((COCO_AS_VOC, VOC_AUG, COCO_VOC_AUG, COCO_VOC_ALL), VOC),
    CITYSCAPES_TRAIN: CITYSCAPES,
    ADE20K_TRAIN: ADE20K,
}
"""The classes of networks by their training data; other data have none that are known here."""
BSD, APACHE, MIT = "BSD-3-Clause", "Apache-2.0", "MIT"
UNKNOWN = "unknown"
LISTS_NAMES = "python -m deeplab_jax weights"


def is_free(licence: str) -> bool:
    """Return whether a licence is known and allows commercial use; the hub writes it in lower case."""
    return licence.lower() in {free.lower() for free in (BSD, APACHE, MIT)}


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
      network: the network that it becomes, a name of `create_model`. A classifier becomes a backbone with a fresh head.
      file: name of the file in the cache and in a mirror.
      addresses: where it is published, in the order in which they are tried.
      trained_on: the training data.
      figure: what the authors report, with the protocol.
      licence: as the authors state it.
      parameters: those that the network takes from the file, in millions.
      megabytes: of the file, in units of 2**20 bytes; 0 if its authors do not say.
      sha256: all 64 hexadecimal digits of the file's SHA-256, or as many as its authors state; "" if none.
      labels: the classes, or None for a classifier, whose classes the network does not keep.
    """

    network: str
    file: str
    addresses: tuple[str, ...]
    trained_on: str
    figure: str
    licence: str
    parameters: float
    megabytes: float = 0.0
    sha256: str = ""
    labels: LabelSet | None = None

    def row(self, name: str) -> dict[str, Any]:
        """Return the entry under its name, as values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "labels"}
        return {"name": name, **values, "classes": None if self.labels is None else self.labels.num_classes}


def _torchvision(
    network: str, parameters: float, file: str, megabytes: float, trained_on: str, figure: str
) -> Published:
    """An entry of torchvision, whose file names end in the first digits of the hash."""
    return Published(
        network=network,
        file=file,
        addresses=(PYTORCH + file,),
        trained_on=trained_on,
        figure=figure,
        licence=BSD,
        parameters=parameters,
        megabytes=megabytes,
        sha256=file.rpartition("-")[2].partition(".")[0],
        labels=LABELS.get(trained_on),
    )


def _hub(
    repository: str, network: str, parameters: float, *, figure: str = "", revision: str = "main", licence: str = BSD
) -> Published:
    """A file of the Hugging Face hub. All have the same name there, so the cache names it after the repository."""
    return Published(
        network=network,
        file=f"{repository.replace('/', '--')}.safetensors",
        addresses=(f"{HUGGING_FACE}{repository}/resolve/{revision}/model.safetensors",),
        trained_on=IMAGENET,
        figure=figure,
        licence=licence,
        parameters=parameters,
    )


ENCODERS = {
    "resnet18": ("deeplabv3plus_resnet18", 11.18),
    "resnet34": ("deeplabv3plus_resnet34", 21.28),
    "resnet50": ("deeplabv3plus_resnet50", 23.51),
    "resnet101": ("deeplabv3plus_resnet101", 42.50),
    "mobilenet_v2": ("deeplabv3plus_mobilenet_v2", 1.81),
    "mobilenet_v3_large": ("deeplabv3plus_mobilenet_v3_large", 2.97),
    "vgg16": ("fcn32s_vgg16", 134.26),
    "vgg16_bn": ("segnet_vgg16", 14.72),
}
"""The network that each classifier becomes, and the parameters of its backbone."""

# By network: the file, mIoU, pixel accuracy, parameters, MiB.
_COCO = {
    "deeplabv3_resnet50": ("deeplabv3_resnet50_coco-cd0a2569.pth", 66.4, 92.4, 42.00, 160.5),
    "deeplabv3_resnet101": ("deeplabv3_resnet101_coco-586e9e4e.pth", 67.4, 92.4, 61.00, 233.2),
    "deeplabv3_mobilenet_v3_large": ("deeplabv3_mobilenet_v3_large-fc3c493d.pth", 60.3, 91.2, 11.03, 42.3),
    "lraspp_mobilenet_v3_large": ("lraspp_mobilenet_v3_large-d234d4ea.pth", 57.9, 91.2, 3.22, 12.5),
    "fcn_resnet50": ("fcn_resnet50_coco-1167a1af.pth", 60.5, 91.4, 35.32, 135.0),
    "fcn_resnet101": ("fcn_resnet101_coco-7ecb50ca.pth", 63.7, 91.9, 54.31, 207.7),
}
# By encoder and weights: the file, top-1 accuracy, MiB.
_TOP1 = {
    "resnet18.imagenet_v1": ("resnet18-f37072fd.pth", 69.758, 44.7),
    "resnet34.imagenet_v1": ("resnet34-b627a593.pth", 73.314, 83.3),
    "resnet50.imagenet_v1": ("resnet50-0676ba61.pth", 76.130, 97.8),
    "resnet50.imagenet_v2": ("resnet50-11ad3fa6.pth", 80.858, 97.8),
    "resnet101.imagenet_v1": ("resnet101-63fe2227.pth", 77.374, 170.5),
    "resnet101.imagenet_v2": ("resnet101-cd907fc2.pth", 81.886, 170.5),
    "mobilenet_v2.imagenet_v1": ("mobilenet_v2-b0353104.pth", 71.878, 13.6),
    "mobilenet_v2.imagenet_v2": ("mobilenet_v2-7ebf99e0.pth", 72.154, 13.6),
    "mobilenet_v3_large.imagenet_v1": ("mobilenet_v3_large-8738ca79.pth", 74.042, 21.1),
    "mobilenet_v3_large.imagenet_v2": ("mobilenet_v3_large-5c1a4163.pth", 75.274, 21.1),
    "vgg16.imagenet_v1": ("vgg16-397923af.pth", 71.592, 527.8),
    "vgg16_bn.imagenet_v1": ("vgg16_bn-6c64b313.pth", 73.360, 527.9),
}
_COCO_FIGURE = "mIoU {}, pixel accuracy {}: COCO val2017, shorter side 520"
TORCHVISION = {
    **{
        f"{name}_coco": _torchvision(name, parameters, file, size, COCO_AS_VOC, _COCO_FIGURE.format(miou, accuracy))
        for name, (file, miou, accuracy, parameters, size) in _COCO.items()
    },
    **{
        name: _torchvision(*ENCODERS[name.partition(".")[0]], file, size, IMAGENET, f"top-1 {top1}")
        for name, (file, top1, size) in _TOP1.items()
    },
}

NON_COMMERCIAL = "CC-BY-NC-4.0"
# Encoder and recipe to the top-1 that timm reports, "" where it reports none here.
_TIMM = {
    **{f"{name}.tv_in1k": "" for name in ENCODERS if not name.startswith("mobilenet")},
    **{f"{name}.tv2_in1k": "" for name in ("resnet50", "resnet101")},
    "resnet18.a1_in1k": "top-1 73.16 at 288",
    "resnet34.a1_in1k": "top-1 77.93 at 288",
    "resnet50.a1_in1k": "top-1 81.24 at 288",
    "resnet101.a1_in1k": "top-1 82.33 at 288",
    "resnet101.a1h_in1k": "top-1 82.80 at 288",
    **{f"{name}.fb_ssl_yfcc100m_ft_in1k": "" for name in ("resnet18", "resnet50")},
    **{f"{name}.fb_swsl_ig1b_ft_in1k": "" for name in ("resnet18", "resnet50")},
}


def _timm(name: str, figure: str) -> Published:
    encoder, _, recipe = name.partition(".")
    licence = NON_COMMERCIAL if recipe.startswith("fb_") else BSD if recipe.startswith("tv") else APACHE
    return _hub(f"timm/{name}", *ENCODERS[encoder], figure=figure, licence=licence)


TIMM = {name: _timm(name, figure) for name, figure in _TIMM.items()}

# Encoder to the revision that segmentation_models_pytorch 0.6 pins; its files are those of torchvision and others.
_SMP = {
    "resnet18": "3f2325ff978283d47aa6a1d6878ca20565622683",
    "resnet34": "7a57b34f723329ff020b3f8bc41771163c519d0c",
    "resnet50": "00cb74e366966d59cd9a35af57e618af9f88efe9",
    "resnet101": "cd7c15e8c51da86ae6a084515fdb962d0c94e7d1",
    "mobilenet_v2": "e67aa804e17f7b404b629127eabbd224c4e0690b",
    "vgg16": "49d74b799006ee252b86e25acd6f1fd8ac9a99c1",
    "vgg16_bn": "2c186d02fb519e93219a99a1c2af6295aef0bf0d",
}
SMP = {
    f"{encoder}.imagenet": _hub(f"smp-hub/{encoder}.imagenet", *ENCODERS[encoder], revision=revision, licence=UNKNOWN)
    for encoder, revision in _SMP.items()
}

# Their masks' values are the class ids. Class 0 counts neither in their training nor in their figure.
_ADE20K_AND_OTHER = LabelSet(("other", *ADE20K.names), ((0, 0, 0), *ADE20K.palette))


def _tensorflow(network: str, archive: str, parameters: float, trained_on: str, figure: str) -> Published:
    file = f"{archive}.tar.gz"
    return Published(
        network=network,
        file=file,
        addresses=(TENSORFLOW + file, TENSORFLOW_PLAIN + file),
        trained_on=trained_on,
        figure=figure,
        licence=APACHE,
        parameters=parameters,
        labels=_ADE20K_AND_OTHER if trained_on == ADE20K_TRAIN else LABELS.get(trained_on),
    )


_V2, _X65 = "deeplabv3_mobilenet_v2", "deeplabv3plus_xception65"
_MULTI = "OS 8, scales, flip"
# The archive, whose name without the date is the name here; the network, parameters, data, and figure.
_SEGMENTATION = (
    ("deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01", _V2, 0.70, COCO_VOC_AUG, "70.19: VOC val, OS 16"),
    ("deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01", _V2, 0.70, COCO_VOC_ALL, "71.83: VOC test, OS 8"),
    ("deeplabv3_mnv2_pascal_train_aug_2018_01_29", _V2, 2.11, COCO_VOC_AUG, f"75.32: VOC val, OS 16; 77.33: {_MULTI}"),
    ("deeplabv3_mnv2_pascal_trainval_2018_01_29", _V2, 2.11, COCO_VOC_ALL, f"80.25: VOC test, {_MULTI}"),
    ("deeplabv3_pascal_train_aug_2018_01_04", _X65, 41.06, COCO_VOC_AUG, f"82.20: VOC val, OS 16; 83.58: {_MULTI}"),
    ("deeplabv3_pascal_trainval_2018_01_04", _X65, 41.06, COCO_VOC_ALL, f"87.80: VOC test, {_MULTI}"),
    ("deeplabv3_mnv2_cityscapes_train_2018_02_05", _V2, 2.11, CITYSCAPES_TRAIN,
     f"70.71: Cityscapes val, OS 16; 73.57: {_MULTI}"),
    ("deeplabv3_cityscapes_train_2018_02_06", _X65, 41.05, CITYSCAPES_TRAIN,
     f"78.79: Cityscapes val, OS 16; 80.42: {_MULTI}"),
    ("deeplabv3_xception_ade20k_train_2018_05_29", _X65, 41.09, ADE20K_TRAIN, f"45.65: ADE20K val, {_MULTI}"),
    # Its options are not published. A separable decoder without a pyramid is what fits the size of its archive.
    ("deeplabv3_mnv2_ade20k_train_2018_12_03", "deeplabv3plus_mobilenet_v2", 2.30, ADE20K_TRAIN,
     "32.04, pixel accuracy 75.41: ADE20K val, OS 16, images of at most 257"),
)  # fmt: skip
_COCO_AFTER = "ImageNet-1k, then COCO"
TENSORFLOW_ZOO = {
    **{
        archive[: -len("_2018_10_01")]: _tensorflow(network, archive, parameters, trained_on, f"mIoU {figure}")
        for archive, network, parameters, trained_on, figure in _SEGMENTATION
    },
    **{
        name: _tensorflow(f"deeplabv3plus_{backbone}", archive, parameters, trained_on, "")
        for name, backbone, archive, parameters, trained_on in (
            ("xception_41.imagenet", "xception41", "xception_41_2018_05_09", 24.92, IMAGENET),
            ("xception_65.imagenet", "xception65", "deeplabv3_xception_2018_01_04", 37.87, IMAGENET),
            ("xception_65.coco", "xception65", "xception_65_coco_pretrained_2018_10_02", 37.87, _COCO_AFTER),
            ("xception_71.imagenet", "xception71", "xception_71_2018_05_09", 40.29, IMAGENET),
            ("resnet_v1_50_beta.imagenet", "resnet50_beta", "resnet_v1_50_2018_05_04", 23.63, IMAGENET),
            ("resnet_v1_101_beta.imagenet", "resnet101_beta", "resnet_v1_101_2018_05_04", 42.62, IMAGENET),
        )
    },
    "deeplabv3_257_mv_gpu": replace(
        _tensorflow(_V2, "", 0.69, COCO_VOC_AUG, "for inputs of 257x257"),
        file="deeplabv3_257_mv_gpu.tflite",
        addresses=(TENSORFLOW + "tflite/gpu/deeplabv3_257_mv_gpu.tflite",),
        megabytes=2.7,
        sha256="68a539782c2c6a72f8aac3724600124a85ed977162b44e84cbae5db717c933c6",
    ),
}


def _mmsegmentation(
    name: str, backbone: str, schedule: str, stamp: str, trained_on: str, miou: float, parameters: float
) -> Published:
    """An entry of mmsegmentation's zoo of DeepLabv3+: OS 8, one scale, whole images; the names end in the hash."""
    run = f"deeplabv3plus_{name.partition('_')[0]}-d8_{schedule}"
    file = f"{run}_{stamp}.pth"
    return Published(
        network=f"deeplabv3plus_{backbone}",
        file=file,
        addresses=(f"{MMSEGMENTATION}{run}/{file}",),
        trained_on=trained_on,
        figure=f"mIoU {miou}: OS 8, one scale",
        licence=APACHE,
        parameters=parameters,
        sha256=stamp.rpartition("-")[2],
        labels=LABELS.get(trained_on),
    )


_CITY, _POTSDAM, _VAIHINGEN = CITYSCAPES_TRAIN, "ISPRS Potsdam, aerial", "ISPRS Vaihingen, aerial"
# By name after "deeplabv3plus_": the backbone, the end of the config's name, date and hash, data, mIoU, parameters.
_MMSEG = {
    "r18b_cityscapes": ("resnet18", "512x1024_80k_cityscapes", "20201226_090828-e451abd9", _CITY, 75.87, 12.45),
    "r50b_cityscapes": ("resnet50", "512x1024_80k_cityscapes", "20201225_213645-a97e4e43", _CITY, 80.28, 43.57),
    "r101b_cityscapes": ("resnet101", "512x1024_80k_cityscapes", "20201226_190843-9c3c93a4", _CITY, 80.16, 62.56),
    "r101_voc": ("resnet101", "512x512_40k_voc12aug", "20200613_205333-faf03387", VOC_AUG, 78.62, 62.58),
    "r101_ade20k": ("resnet101", "512x512_160k_ade20k", "20200615_123232-38ed86bb", ADE20K_TRAIN, 45.47, 62.68),
    "r50_loveda": ("resnet50", "512x512_80k_loveda", "20211105_080442-f0720392", "LoveDA, aerial", 50.99, 43.58),
    "r50_potsdam": ("resnet50", "512x512_80k_potsdam", "20211219_031508-7e7a2b24", _POTSDAM, 78.33, 43.58),
    "r50_vaihingen": ("resnet50", "4x4_512x512_80k_vaihingen", "20211231_230816-5040938d", _VAIHINGEN, 73.97, 43.58),
    "r50_isaid": ("resnet50", "4x4_896x896_80k_isaid", "20220110_180526-598be439", "iSAID, aerial", 67.06, 43.59),
}
MMSEG = {f"deeplabv3plus_{name}": _mmsegmentation(name, *row) for name, row in _MMSEG.items()}

TRANSFORMERS = {
    "deeplabv3_mobilenet_v2_1.0_513": Published(
        network=_V2,
        file="google--deeplabv3_mobilenet_v2_1.0_513.bin",
        addresses=(f"{HUGGING_FACE}google/deeplabv3_mobilenet_v2_1.0_513/resolve/main/pytorch_model.bin",),
        trained_on=COCO_VOC_AUG,
        figure="",
        licence="other",
        parameters=2.11,
        labels=VOC,
    )
}

KERAS_HUB = {
    # Its archive holds the preset's folder.
    "deeplab_v3_plus_resnet50_pascalvoc": Published(
        network="deeplabv3plus_resnet50",
        file="keras--deeplab_v3_plus_resnet50_pascalvoc-4.tar.gz",
        addresses=(f"{KAGGLE}keras/deeplabv3plus/keras/deeplab_v3_plus_resnet50_pascalvoc/4/download",),
        trained_on=VOC_AUG,
        figure="mIoU 63, categorical accuracy 90.01: OS 32, split not stated",
        licence=APACHE,
        parameters=39.14,
        labels=VOC,
    )
}

PUBLISHED: dict[str, Published] = {
    f"{owner}/{name}": entry
    for owner, entries in (
        ("torchvision", TORCHVISION),
        ("timm", TIMM),
        ("smp", SMP),
        ("tensorflow", TENSORFLOW_ZOO),
        ("mmsegmentation", MMSEG),
        ("google", TRANSFORMERS),
        ("keras", KERAS_HUB),
    )
    for name, entry in entries.items()
}
"""Every name that `load` takes besides paths: `owner/name`."""

# Names that the authors' archives and the training scripts of others give: of the file, or of a folder around it.
KNOWN_FILES: tuple[tuple[str, LabelSet], ...] = (
    (r"deeplabv3(_mnv2(_dm05)?|_xception)?_pascal_train(_aug|val)(_20\d\d_\d\d_\d\d)?", VOC),
    (r"deeplab(v3)?(_mnv2)?_cityscapes(_xception71)?_train\w*", CITYSCAPES),
    (r"best_deeplabv3(plus)?_\w+_voc_os\d+\.pth", VOC),
    (r"best_deeplabv3(plus)?_\w+_cityscapes_os\d+\.pth", CITYSCAPES),
)


def known_classes(path: Path, num_classes: int) -> dict[str, Any]:
    """Return `class_names` and `palette` of published weights that the user gives as a file or folder; {} if they are
    not known for certain. The number of classes alone says nothing: a network of the user's own may have as many.
    """
    labels = _by_name(path) or (_by_content(path) if path.is_file() else None)
    if labels is None or labels.num_classes != num_classes:
        return {}
    return labels.info()


def _by_name(path: Path) -> LabelSet | None:
    for name in (path.name, path.absolute().parent.name):
        for pattern, labels in KNOWN_FILES:
            if re.fullmatch(pattern, name):
                return labels
    return None


def _by_content(file: Path) -> LabelSet | None:
    digest = sha256_of(file)
    return next((one.labels for one in PUBLISHED.values() if one.sha256 and digest.startswith(one.sha256)), None)
