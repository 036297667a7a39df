"""What researchers hold, in the real layouts, small: each function writes one outside format below a folder.

Image k of class c, both from 0, is of the one colour (20 c, 9 k, 200), so that a store shows what went where.
"""

import csv
import pickle
import struct
import tarfile
from io import BytesIO

import numpy as np
from PIL import Image

CLASSES = {
    "train": ["n01000001", "n01000002", "n01000003"],
    "val": ["n02000001", "n02000002"],
    "test": ["n03000001", "n03000002"],
}
NAMES = [name for names in CLASSES.values() for name in names]
NUMBERS = [9, 10, 33, 100, 205, 1000, 1001, 2000]  # of the ILSVRC files: "9" sorts last as text
PLACES = [2, 3, 5, 7, 8]  # of the images in the split, from 1
MASK = "aw=="  # the bits 0110 1011, in base64
PER_CLASS = len(PLACES)


SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}  # of CIFAR-100, each with its classes


def colour(c, k):
    return (20 * c, 9 * k, 200)


def picture(c, k, size=(40, 30)):
    return Image.new("RGB", size, colour(c, k))


def encoded(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mini_split_file(folder):
    """The tiny counterpart of mini_imagenet.csv."""
    rows = [f"{split},{name},{MASK}" for split, names in CLASSES.items() for name in names]
    return _text(folder / "mini_split.csv", ["split,class,images", *rows])


def tiered_split_file(folder):
    """The tiny counterpart of tiered_imagenet.csv."""
    rows = [f"{split},{name}" for split, names in CLASSES.items() for name in names]
    return _text(folder / "tiered_split.csv", ["split,class", *rows])


def ilsvrc_folders(root):
    for c, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for k, number in enumerate(NUMBERS):
            (root / name / f"{name}_{number}.JPEG").write_bytes(encoded(picture(c, k), "JPEG", quality=95))
    (root / NAMES[0] / ".DS_Store").write_bytes(b"\0")


def ilsvrc_tars(root):
    root.mkdir()
    for c, name in enumerate(NAMES):
        members = [(f"{name}_{n}.JPEG", encoded(picture(c, k), "JPEG", quality=95)) for k, n in enumerate(NUMBERS)]
        write_tar(root / f"{name}.tar", members[::-1])


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))


def mini_cache(split, size=84):
    """The content of one of the three pickles; the classes' images are mixed, as nothing forbids."""
    names = CLASSES[split]
    images = [(NAMES.index(name), place - 1) for place in PLACES for name in names]
    return {
        "image_data": np.stack([np.full((size, size, 3), colour(c, k), np.uint8) for c, k in images]),
        "class_dict": {name: [i for i, (c, _) in enumerate(images) if NAMES[c] == name] for name in reversed(names)},
    }


def mini_pickles(root):
    """Train as Python 2 wrote it, the others as Python 3 does; the file of val under its other name, keys as bytes."""
    root.mkdir()
    (root / "mini-imagenet-cache-train.pkl").write_bytes(python2_pickle(mini_cache("train")))
    val = {key.encode(): value for key, value in mini_cache("val").items()}
    val[b"class_dict"] = {name.encode(): indices for name, indices in val[b"class_dict"].items()}
    (root / "mini-imagenet-cache-validation.pkl").write_bytes(pickle.dumps(val, protocol=2))
    (root / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(mini_cache("test"), protocol=5))


def mini_csv(root):
    (root / "images").mkdir(parents=True)
    for split, names in CLASSES.items():
        rows = []
        for place in PLACES:
            for name in names:
                file = f"{name}{place:08d}.jpg"
                image = picture(NAMES.index(name), place - 1, (84, 84))
                (root / "images" / file).write_bytes(encoded(image, "JPEG", quality=95))
                rows.append(f"{file},{name}")
        _text(root / f"{split}.csv", ["filename,label", *rows])


def tiered_pickles(root):
    """Column arrays of PNG bytes, as OpenCV encodes them; names that repeat between the splits."""
    root.mkdir()
    for split, names in CLASSES.items():
        labels = np.array([i for _ in NUMBERS for i in range(len(names))])
        pngs = [
            np.frombuffer(encoded(picture(NAMES.index(names[i]), k, (84, 84)), "PNG"), np.uint8)[:, None]
            for k in range(len(NUMBERS))
            for i in range(len(names))
        ]
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(pngs, protocol=2))
        content = {
            "label_specific": labels,
            "label_general": np.zeros_like(labels),
            "label_specific_str": ["crane", "crane", "tench"][: len(names)],
            "label_general_str": ["bird"],
        }
        (root / f"{split}_labels.pkl").write_bytes(python2_pickle(content))


def embeddings(split, num_features=640):
    """The content of one of the authors' pickles: image k of class c has the features c + k / 100."""
    names, keys, rows = CLASSES[split], [], []
    for k, number in enumerate(NUMBERS):
        for i, name in enumerate(names):
            keys.append(f"{len(keys)}-{name}-{name}_{number}.JPEG")
            rows.append(np.full(num_features, NAMES.index(name) + k / 100, np.float32) + np.eye(1, num_features, i)[0])
    return {
        "keys": np.array([key.encode() for key in keys]),
        "embeddings": np.array(rows, np.float32),
        "labels": np.arange(len(keys)) % len(names),
    }


def leo_embeddings(root, data="miniImageNet", crop="center"):
    (root / data / crop).mkdir(parents=True)
    for split in CLASSES:
        (root / data / crop / f"{split}_embeddings.pkl").write_bytes(python2_pickle(embeddings(split)))


def cifar100(root, per_class=(3, 2)):
    """Training and test images of the 100 classes; image k of class c has red 2 c + k, green 7, and its row as blue."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    coarse = {name: i for i, names in enumerate(SUPERCLASSES.values()) for name in names.split()}
    order = sorted(coarse)
    k = 0
    for part, count in zip(("train", "test"), per_class, strict=True):
        labels = [c for _ in range(count) for c in range(100)]
        reds = [2 * c + k + i for i in range(count) for c in range(100)]
        content = {
            "data": np.stack(
                [np.concatenate([np.full(1024, red), np.full(1024, 7), np.arange(1024) // 32]) for red in reds]
            ).astype(np.uint8),
            "fine_labels": labels,
            "coarse_labels": [coarse[order[c]] for c in labels],
            "filenames": [f"{order[c]}_s_{i:06d}.png" for i, c in enumerate(labels)],
            "batch_label": "training batch 1 of 1",
        }
        (folder / part).write_bytes(python2_pickle(content))
        k += count
    meta = {"fine_label_names": order, "coarse_label_names": list(SUPERCLASSES)}
    (folder / "meta").write_bytes(python2_pickle(meta))


def omniglot_split_file(folder):
    """The tiny counterpart of omniglot.csv; an alphabet may be in two splits, as Gurmukhi is."""
    rows = ["train,Greek,1,3", "train,Gurmukhi,1,1", "val,Hebrew,1,2", "test,Gurmukhi,2,2", "test,Tibetan,1,2"]
    return _text(folder / "omniglot_split.csv", ["split,alphabet,first,last", *rows])


def omniglot(root, split_file, drawings=3):
    """The characters of ``split_file``; ink is black and fills the upper left quarter of a 1-bit drawing."""
    with split_file.open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            part = "images_evaluation" if row["alphabet"] == "Tibetan" else "images_background"
            for number in range(int(row["first"]), int(row["last"]) + 1):
                folder = root / "omniglot-py" / part / row["alphabet"] / f"character{number:02d}"
                folder.mkdir(parents=True, exist_ok=True)
                for drawer in range(1, drawings + 1):
                    image = Image.new("1", (105, 105), 1)
                    image.paste(0, (0, 0, 52, 52))
                    image.save(folder / f"{10 * i + number:04d}_{drawer:02d}.png")


def image_folder(root, with_splits):
    for split, names in CLASSES.items():
        for name in names:
            folder = root / split / name if with_splits else root / name
            folder.mkdir(parents=True)
            for k in range(4):
                picture(NAMES.index(name), k).save(folder / f"photo {k}.png")


def python2_pickle(content):
    """``content`` as Python 2 pickles it, protocol 2: every text is a byte string, modules have their old names."""
    file = BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


class Python2Pickler(pickle._Pickler):
    def reducer_override(self, value):
        """Types of arrays have numbers where numpy 2 has truth values."""
        if not isinstance(value, np.dtype):
            return NotImplemented
        make, (name, align, copy), *state = value.__reduce__()
        return make, (name, int(align), int(copy)), *state

    def save_byte_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_byte_string, str: save_byte_string}


def _text(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path
