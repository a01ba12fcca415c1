"""Official layouts of public data sets, described as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zoo.common.errors import InputError, join_problems
from zoo.common.palette import Colour
from zoo.data.dataset import Dataset, Decoder, Sample
from zoo.data.formats.lists import read_names, samples_by_name
from zoo.data.formats.pairs import Place, pair_place


@dataclass(frozen=True)
class Part:
    """The files of one split below the root.

    Only files whose names without extension end in `image_ending` and `mask_ending` count. `names`
    is a list of names that chooses among the files; `keep` chooses among the names. Without
    `masks` the split has images only.
    """

    images: str
    masks: str | None
    names: str | None = None
    image_ending: str = ""
    mask_ending: str = ""
    keep: Callable[[str, int], bool] | None = None

    def is_there(self, root: Path) -> bool:
        """Whether anything of the split lies below `root`."""
        if self.names is not None:
            return (root / self.names).is_file()
        return any((root / side).is_dir() for side in (self.images, self.masks) if side)

    def samples(self, root: Path, problems: list[str]) -> list[Sample]:
        """The pairs of the split; whatever is wrong is added to `problems`."""
        masks = None if self.masks is None else root / self.masks
        place = Place(root / self.images, masks, self.image_ending, self.mask_ending)
        if self.names is not None:
            file = root / self.names
            names = self._kept(read_names(file, problems))
            return samples_by_name(names, place, file, problems) if names else []
        samples = pair_place(place, problems)
        kept = set(self._kept([sample.name for sample in samples]))
        return [sample for sample in samples if sample.name in kept]

    def _kept(self, names: list[str]) -> list[str]:
        keep = self.keep
        return names if keep is None else [n for i, n in enumerate(names) if keep(n, i)]

    def text(self) -> str:
        """The folders, for messages."""
        masks = [] if self.masks is None else [self.masks]
        return " + ".join([self.images, *masks, *([self.names] if self.names else [])])


@dataclass(frozen=True)
class Tree:
    """An official layout: classes, what the ids of masks mean, and where each split lies.

    A split of which nothing is there is left out. `inner` are folders in which the whole layout
    may lie below the given root; `where` names the layout in messages.
    """

    name: str
    classes: dict[str, Colour]
    id_map: dict[int, int] | None
    splits: dict[str, Part]
    inner: tuple[str, ...] = ()
    decoder: Decoder = "ids"
    group: str | None = None
    choose: Callable[[Path, Tree], Tree] | None = field(default=None)

    def __call__(self, given: str) -> Dataset:
        """Pair the files below the folder. Raises InputError where none of the splits is there."""
        root = self._root(Path(given).expanduser())
        tree = self if self.choose is None else self.choose(root, self)
        here = {split: part for split, part in tree.splits.items() if part.is_there(root)}
        if not here:
            expected = ", ".join(part.text() for part in tree.splits.values())
            state = "has none of the folders" if root.is_dir() else "is not a folder with those"
            raise InputError(f"{root} {state} of the {tree.name} layout: {expected}.")
        problems: list[str] = []
        samples = {split: part.samples(root, problems) for split, part in here.items()}
        if problems:
            raise InputError(join_problems(f"{root} cannot be used:", dict.fromkeys(problems)))
        return Dataset(
            name=tree.name,
            root=root,
            classes=list(tree.classes),
            palette=list(tree.classes.values()),
            splits={split: found for split, found in samples.items() if found},
            id_map=None if tree.id_map is None else dict(tree.id_map),
            decoder=tree.decoder,
            group=tree.group,
        )

    def is_whole(self, given: Path) -> bool:
        """Whether both folders of one of the splits are there."""
        root = self._root(given)
        return any(
            part.masks is not None
            and all((root / side).is_dir() for side in (part.images, part.masks))
            for part in self.splits.values()
        )

    def _root(self, given: Path) -> Path:
        """The folder of the layout: the given one, or the first of `inner` that is there."""
        places = [given, *(given / folder for folder in self.inner)]
        fitting = [
            place for place in places if any(part.is_there(place) for part in self.splits.values())
        ]
        return fitting[0] if fitting else given
