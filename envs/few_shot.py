"""N-way K-shot classification of images: letters drawn here, Omniglot, and folders of the user's own."""

import functools
import logging
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from gymnasium import spaces
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont, ImageOps

from .family import Array, Floats, in_words
from .native import TaskEnv
from .supervised import ExamplesError, SupervisedFamily

_log = logging.getLogger(__name__)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# Height and width of letters and of Omniglot's characters.
_SIZE = 28


class Images(NamedTuple):
    """Classes of images, those for training first.

    Attributes:
        pixels: All images, class after class, (n, channels, height, width) uint8.
        sizes: The number of images of each class, (C,).
        num_training: The number of classes for training. The others are for tests.
    """

    pixels: Array
    sizes: Array
    num_training: int


class FewShotVectorEnv(SupervisedFamily):
    """N classes of images are told apart, after a few examples of each.

    * Task: the numbers of N different classes; D = N. A class's place in the task is its label.
    * p(T): classes for training, all equally likely. Held-out tasks have classes that training does not use.
    * Input: an image, (channels, height, width). Target: the label of its class, 0 ... N - 1.
    * Loss: the cross-entropy.

    The number of examples K of a task must be a multiple of N: K / N of each class, which are its shots. The
    examples to adapt to and those to be measured on are different images.

    A subclass passes its `images`. Other arguments are those of `TaskVectorEnv`.

    Args:
        num_ways: N.
    """

    task_space: spaces.MultiDiscrete
    initial_noise = 2

    def __init__(self, images: Images, num_ways: int, num_envs: int = 1, **kwargs: Any):
        images = _checked(images)
        num_tests = len(images.sizes) - images.num_training
        fewest = min(images.num_training, num_tests)
        if not 2 <= num_ways <= fewest:
            raise ValueError(
                f"{self.name}: num_ways is {num_ways}, but must be between 2 and {fewest}: there are "
                f"{images.num_training} classes for training and {num_tests} for tests."
            )
        self.images = images
        self.task_space = spaces.MultiDiscrete(np.full(num_ways, len(images.sizes)))
        self.single_observation_space = spaces.Box(0, 255, images.pixels.shape[1:], np.uint8)
        self.single_action_space = spaces.Discrete(num_ways)
        self._firsts = np.cumsum(images.sizes) - images.sizes
        super().__init__(num_envs, **kwargs)

    @property
    def num_ways(self) -> int:
        """The number of classes N of a task."""
        return len(self.task_space.nvec)

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws N different training classes for each task, (M, N)."""
        return self._sample(num_tasks, 0, self.images.num_training, rng)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws N different test classes for each task, (M, N)."""
        return self._sample(num_tasks, self.images.num_training, len(self.images.sizes), rng)

    def _sample(self, num_tasks: int, first: int, end: int, rng: np.random.Generator) -> Array:
        return first + rng.random((num_tasks, end - first)).argsort(axis=1)[:, : self.num_ways]

    def task_problem(self, tasks: Array) -> str | None:
        """Checks that the classes of each task differ."""
        ordered = np.sort(tasks, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        return f"the task {tasks[twice][0]} has a class twice; choose different classes." if twice.any() else None

    def example(self, task: Array, noise: Floats) -> tuple[Array, Array]:
        """Returns an image of any of a task's classes, (n, channels, height, width), and its label, (n,)."""
        labels = (noise[:, 0] * self.num_ways).astype(np.int64)
        classes = task[np.arange(len(task)), labels]
        numbers = (noise[:, 1] * self.images.sizes[classes]).astype(np.int64)
        return self.images.pixels[self._firsts[classes] + numbers], labels

    def examples(self, tasks: Array, num_examples: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draws different images, as many of each class in each half of them; see `SupervisedFamily.examples`.

        Raises:
            ExamplesError: If `num_examples` is no multiple of 2N, or a class has too few images.
        """
        per_class, rest = divmod(num_examples, 2 * self.num_ways)
        if rest:
            raise ExamplesError(
                f"{self.name}: a task has {num_examples // 2} examples, but must have a multiple of num_ways = "
                f"{self.num_ways}: as many of each class. Correct num_rollouts or eval_num_rollouts."
            )
        sizes = self.images.sizes[tasks]
        if sizes.min() < 2 * per_class:
            raise ExamplesError(
                f"{self.name}: {2 * per_class} images of each class are needed, to adapt to and to be measured "
                f"on, but a class has only {sizes.min()}; lower num_rollouts or eval_num_rollouts."
            )
        keys = rng.random((*tasks.shape, sizes.max()))
        keys[np.arange(sizes.max()) >= sizes[..., None]] = np.inf
        numbers = self._firsts[tasks][..., None] + keys.argsort(axis=-1)[..., : 2 * per_class]
        images = self.images.pixels[np.swapaxes(numbers, 1, 2).reshape(len(tasks), -1)]
        return images, np.tile(np.arange(self.num_ways), (len(tasks), 2 * per_class))

    def frame(self, state: Array, task: Array) -> Array:
        """Draws the image four times as large."""
        pixels = self.observation(state[None], task[None])[0].transpose(1, 2, 0)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(4, axis=0).repeat(4, axis=1)


class GlyphsVectorEnv(FewShotVectorEnv):
    """Letters of many scripts are told apart, in the typefaces that matplotlib contains; nothing is downloaded.

    * Classes: letters that all faces of DejaVu Sans, Sans Mono and Serif have: Latin, Greek, Cyrillic, Armenian,
      Georgian and others. The images of a class are its drawings in these faces, white on black, 28 × 28. Letters
      that look the same in half of the faces, such as the Latin, Greek and Cyrillic A, are one class.
    * A fifth of the classes is for tests.

    The classes depend on the version of matplotlib. Arguments are those of `FewShotVectorEnv`.
    """

    def __init__(self, num_envs: int = 1, num_ways: int = 5, **kwargs: Any):
        super().__init__(_glyphs(), num_ways, num_envs, **kwargs)


class GlyphsEnv(TaskEnv):
    """One image of a letter; see `GlyphsVectorEnv`."""

    vector_class = GlyphsVectorEnv


class OmniglotVectorEnv(FewShotVectorEnv):
    """Characters of 50 alphabets, each drawn by 20 people, are told apart.

    Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
    induction", Science 350 (2015). The images are white on black, 28 × 28.

    * Classes: each character in four orientations, turned by 0, 90, 180 and 270 degrees (Santoro et al.,
      arXiv:1605.06065).
    * 1,200 characters, drawn once from both parts of the data set, are for training, and the others for tests
      (Vinyals et al., arXiv:1606.04080). Of a smaller data set, three quarters are for training.

    Other arguments are those of `FewShotVectorEnv`.

    Args:
        root: The folder that torchvision downloads to: `images_background` and `images_evaluation` are in it, or
            in `omniglot-py` in it.
    """

    def __init__(self, num_envs: int = 1, num_ways: int = 5, root: str = "data", **kwargs: Any):
        super().__init__(_omniglot(Path(root).absolute()), num_ways, num_envs, **kwargs)


class OmniglotEnv(TaskEnv):
    """One image of a character; see `OmniglotVectorEnv`."""

    vector_class = OmniglotVectorEnv


class ImageFolderVectorEnv(FewShotVectorEnv):
    """Classes of images in a folder are told apart.

    Every folder below `train` or `test` that directly holds images is a class. Images are scaled to squares, and
    all are kept in memory. What is transparent becomes white. miniImageNet's usual classes are in
    https://github.com/twitter-research/meta-learning-lstm (Ravi and Larochelle, 2017).

    Other arguments are those of `FewShotVectorEnv`.

    Args:
        root: The folder with the folders `train` and `test`.
        size: Height and width of the images.
        colour: Whether the images have three channels, or one.
    """

    def __init__(
        self,
        num_envs: int = 1,
        num_ways: int = 5,
        root: str = "data",
        size: int = 84,
        colour: bool = True,
        **kwargs: Any,
    ):
        if not isinstance(colour, bool):
            raise ValueError(f"colour is {colour!r}, but must be True or False.")
        super().__init__(_folder(Path(root).absolute(), size, colour), num_ways, num_envs, **kwargs)


class ImageFolderEnv(TaskEnv):
    """One image of a folder; see `ImageFolderVectorEnv`."""

    vector_class = ImageFolderVectorEnv


def _checked(images: Images) -> Images:
    """Refuses images whose sizes would give some to the wrong class."""
    pixels, sizes = np.asarray(images.pixels), np.asarray(images.sizes)
    if pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise ValueError(
            f"pixels has shape {pixels.shape} and type {pixels.dtype}, but must be (n, channels, height, width) "
            "of uint8."
        )
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or (sizes < 1).any() or sizes.sum() != len(pixels):
        raise ValueError(
            f"sizes is {in_words(sizes)}, but must be the number of images of each class, {len(pixels)} together."
        )
    if not 0 < images.num_training < len(sizes):
        raise ValueError(
            f"num_training is {images.num_training}, but must be between 1 and {len(sizes) - 1}: the classes are "
            "for training and for tests."
        )
    return images._replace(pixels=pixels, sizes=sizes)


def _joined(classes: list[Array], num_training: int) -> Images:
    return Images(np.concatenate(classes), np.array([len(images) for images in classes]), num_training)


@functools.cache
def _glyphs() -> Images:
    """Draws all letters in all faces, once in a process; this takes a few seconds."""
    faces = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
    faces = [path for path in faces if "Display" not in path.stem]
    charmaps = [FT2Font(str(path)).get_charmap() for path in faces]
    letters = sorted(
        letter
        for letter in set(charmaps[0]).intersection(*charmaps)
        if unicodedata.category(chr(letter))[0] == "L"
    )
    fonts = [ImageFont.truetype(path, 22) for path in faces]
    drawings = np.array([[_drawn(font, chr(letter)) for font in fonts] for letter in letters])
    # The pairs of letters that have the same drawing in a face, each counted once for each such face.
    same: Counter[tuple[int, int]] = Counter()
    for face in range(len(faces)):
        groups: dict[bytes, list[int]] = {}
        for i, drawing in enumerate(drawings[:, face]):
            groups.setdefault(drawing.tobytes(), []).append(i)
        same.update(pair for group in groups.values() for pair in combinations(group, 2))
    copies = {later for (_, later), count in same.items() if 2 * count >= len(faces)}
    kept = drawings[[i for i in range(len(letters)) if i not in copies]]
    classes = kept[np.random.default_rng(0).permutation(len(kept))][:, :, None]
    return _joined([*classes], len(classes) - len(classes) // 5)


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> Array:
    """A letter in the middle of a black square, as large as in text unless it is wider than that."""
    mask = font.getmask(letter)
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    glyph.thumbnail((_SIZE, _SIZE))
    square = Image.new("L", (_SIZE, _SIZE))
    square.paste(glyph, ((_SIZE - glyph.width) // 2, (_SIZE - glyph.height) // 2))
    return np.array(square)


@functools.cache
def _omniglot(root: Path) -> Images:
    parts = [
        folder / name
        for folder in (root, root / "omniglot-py")
        for name in ("images_background", "images_evaluation")
    ]
    characters = [255 - images for part in parts if part.is_dir() for images in _classes(part, _SIZE, False)]
    if not characters:
        raise ValueError(
            f"Omniglot is not in {root}; download it with torchvision.datasets.Omniglot(root, background, "
            "download=True), once with background=True and once with False, and set root: --env-kwargs root "
            "FOLDER."
        )
    order = np.random.default_rng(0).permutation(len(characters))
    turned = [np.rot90(characters[i], turns, axes=(2, 3)) for i in order for turns in range(4)]
    return _joined(turned, 4 * min(1200, 3 * len(characters) // 4))


@functools.cache
def _folder(root: Path, size: int, colour: bool) -> Images:
    parts = []
    for part in (root / "train", root / "test"):
        parts.append(_classes(part, size, colour) if part.is_dir() else [])
        if not parts[-1]:
            raise ValueError(
                f"{part} holds no folders of images; put a folder of images for each class there, and set root: "
                "--env-kwargs root FOLDER. Nothing is downloaded."
            )
    return _joined(parts[0] + parts[1], len(parts[0]))


def _classes(folder: Path, size: int, colour: bool) -> list[Array]:
    """The images of each folder that holds some, (n, channels, size, size) uint8, in the order of their names."""
    found: dict[Path, list[Path]] = {}
    others = []
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() in _SUFFIXES and path.parent != folder:
            found.setdefault(path.parent, []).append(path)
        else:
            others.append(path)
    if others:
        _log.warning(
            "In %s, files such as %s are not used (%d in all); images must be in folders of classes and end in %s",
            *(folder, others[0].name, len(others), ", ".join(_SUFFIXES)),
        )
    return [np.stack([_loaded(path, size, colour) for path in paths]) for paths in found.values()]


def _loaded(path: Path, size: int, colour: bool) -> Array:
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)  # as photographed
            if image.mode.startswith(("I", "F")):  # which Pillow cuts off above 255
                raise ValueError(f"{path} has more than 8 bits for a pixel; save it with 8.")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.array(image.convert("RGB" if colour else "L").resize((size, size)))
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); repair or remove it.") from error
    return pixels.transpose(2, 0, 1) if colour else pixels[None]
