"""What the doctor reports: the table of codes, a finding of one code, and the whole diagnosis."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from zoo.common.errors import number_of
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Source

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Code:
    """One kind of finding; `fixable` says that a corrected copy can repair it."""

    code: str
    severity: Severity
    title: str
    meaning: str
    remedy: str
    fixable: bool = False


@dataclass(frozen=True)
class Finding:
    """One code with the files it concerns: path below the root -> comment (may be empty)."""

    code: str
    files: dict[str, str] = field(default_factory=dict)
    detail: str = ""

    @property
    def about(self) -> Code:
        """Title, severity, meaning and remedy."""
        return CODES[self.code]


@dataclass(frozen=True)
class DisputedPair:
    """How many pixels of the class `label` a model says are of the class `model`.

    `fraction` is that of the pixels with this label.
    """

    label: str
    model: str
    pixels: int
    fraction: float


@dataclass(frozen=True)
class DisputedImage:
    """One image whose labels were compared with a model's prediction.

    `score`, in [0, 1], is the quality of its labels: the lower, the more a model doubts them.
    `disputed` of its `pixels` labelled ones are in question, most of them as `pairs` say.
    """

    split: str
    name: str
    image: str
    score: float
    disputed: int
    pixels: int
    pairs: tuple[DisputedPair, ...]


@dataclass(frozen=True)
class LabelIssues:
    """Labels that a model disputes: images from the lowest score on, pairs from the most pixels on.

    `pictures` are WebP files of the first images: image, label, model, disputed pixels.
    """

    model: str
    splits: tuple[str, ...]
    images: list[DisputedImage]
    pairs: list[DisputedPair]
    pictures: list[bytes]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a machine, without the pictures."""
        return {key: value for key, value in asdict(self).items() if key != "pictures"}


@dataclass(frozen=True)
class Diagnosis:
    """All findings in order of their codes, the files they were found in, and statistics.

    `labels` is what a model disputes, if one was asked.
    """

    source: Source
    pairs: list[Pair]
    findings: list[Finding]
    facts: dict[str, Any]
    labels: LabelIssues | None = None

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.about.severity == severity]

    @property
    def splits(self) -> dict[str, int]:
        """The number of images in each split."""
        return dict(Counter(pair.split for pair in self.pairs))

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each severity."""
        return {severity: len(self.of(severity)) for severity in SEVERITIES}

    @property
    def summary(self) -> str:
        """The counts in words, such as `1 error, 0 warnings, 2 notes`."""
        return ", ".join(number_of(count, name) for name, count in self.counts.items())

    @property
    def exit_code(self) -> int:
        """2 if there is an error, else 0."""
        return 2 if self.of("error") else 0

    def as_json(self) -> dict[str, Any]:
        """Plain values for a machine; files are relative to `root`."""
        findings = [
            {
                "code": finding.code,
                "severity": finding.about.severity,
                "title": finding.about.title,
                "detail": finding.detail,
                "files": [{"path": path, "remark": text} for path, text in finding.files.items()],
                "meaning": finding.about.meaning,
                "remedy": finding.about.remedy,
                "fixable": finding.about.fixable,
            }
            for finding in self.findings
        ]
        labels = {} if self.labels is None else {"labels": self.labels.as_json()}
        return {
            "data": self.source.name,
            "root": str(self.source.root),
            "splits": self.splits,
            "counts": self.counts,
            "findings": findings,
            "facts": self.facts,
            **labels,
        }


_TABLE = [
    # files and splits
    Code("D101", "error", "dataset.yaml cannot be used",
         "Without a valid dataset.yaml the ids in the masks have no names and nothing can be "
         "trained.",
         "Correct the file as the message says. Without one, start from that under D603 if it is "
         "shown, or from what `zoo data init` writes."),
    Code("D102", "warning", "No train or no val split",
         "Training needs train; choosing the best epoch needs val.",
         "`zoo data split` makes both out of the images there are; or name their folders under "
         "`splits:` in dataset.yaml."),
    Code("D103", "note", "No test split",
         "A score on val is optimistic, because the best epoch was chosen on it.",
         "Keep some images, from other places or videos, for the final measurement."),
    Code("D104", "error", "Folder of a split is missing or empty",
         "dataset.yaml names a folder without usable files.",
         "Correct the name under `splits:`, or put the files there."),
    Code("D105", "error", "Image without mask",
         "Nothing can be learned from these images, and the data set cannot be loaded.",
         "Add the mask under the same name, or remove the image.", True),
    Code("D106", "error", "Mask without image",
         "A file was renamed or lost.",
         "Add the image under the same name, or remove the mask.", True),
    Code("D107", "error", "Two files with the same name",
         "They differ only in the extension, so it is unclear which one to use.",
         "Keep one file for each name."),
    Code("D108", "warning", "Very few images",
         "With fewer than 10 images to train on, or 5 to measure on, results are mostly chance.",
         "Annotate more, or report an interval over several seeds and splits."),
    Code("D109", "note", "No dataset.yaml",
         "The classes are taken from the ids of the masks, and have no names. Without val, "
         "training divides train 7:3, similar images together.",
         "`zoo data init` writes a dataset.yaml in which to name the classes."),
    # images
    Code("D201", "error", "Unreadable image",
         "The file is empty or not an image in a known format.",
         "Replace it, or remove it together with its mask."),
    Code("D202", "error", "Damaged image",
         "The header is valid but the pixels cannot be decoded: usually the file is truncated.",
         "Copy it again from its source, or remove it together with its mask."),
    Code("D203", "error", "Image with float, signed or 32-bit pixels",
         "Such values have no fixed range, so they cannot be converted to 8 bits.",
         "Write `range: [low, high]` in dataset.yaml, or save the image with 8 or 16 bits per "
         "channel."),
    Code("D204", "warning", "Image rotated by its EXIF tag",
         "Some programs show and annotate the rotated image, others the stored one; if they "
         "disagree, the mask does not match the image.",
         "Look at the overlay; store the pixels rotated and without the tag.", True),
    Code("D205", "error", "Mask drawn on the image before its EXIF rotation",
         "The mask has the size of the stored pixels, but the EXIF tag rotates the image.",
         "Rotate the mask like the image, and store both without the tag.", True),
    Code("D206", "note", "16-bit image",
         "It is scaled so that 65535 becomes 255.",
         "Check the brightness in the report; write `range: [low, high]` in dataset.yaml if it is "
         "too dark."),
    Code("D207", "note", "Image with an alpha channel",
         "Transparency is dropped; colours hidden below it become visible.",
         "Save the image as RGB.", True),
    Code("D208", "warning", "Image in an unusual colour space",
         "CMYK, Lab and the like are converted to RGB by an approximate formula.",
         "Convert to RGB with a colour-managed program."),
    Code("D209", "error", "Image file with several frames or pages",
         "It is unclear which of them the mask belongs to. Pages of a TIFF are read as channels "
         "where their number is that of `channels`.",
         "Save each frame in a file of its own."),
    Code("D210", "warning", "Image of a single colour",
         "It carries no information: a failed export, or a covered lens.",
         "Replace it, or remove it together with its mask."),
    Code("D211", "warning", "Image with almost no contrast",
         "The standard deviation of its values is below 2 of 255: under-exposed, or badly "
         "converted.",
         "Export it again with the right range, or remove it together with its mask."),
    Code("D212", "note", "Gray and colour images are mixed",
         "The rarer kind looks different to the model; if it depends on the class or the split, "
         "the model learns that instead.",
         "Check that both kinds occur in every split; convert all to gray if colour does not "
         "help."),
    Code("D213", "note", "Sizes differ strongly",
         "The largest image has more than 16 times the pixels of the smallest, so one crop size "
         "cannot suit both.",
         "Tile the large images, or rescale all so that objects have about the same size."),
    Code("D214", "warning", "Tiny image",
         "Its shorter side is below 48 pixels; an encoder that divides by 32 sees almost nothing.",
         "Use the original resolution."),
    Code("D215", "warning", "Extreme aspect ratio",
         "One side is more than 4 times the other; square crops see little of it.",
         "Cut it into tiles."),
    Code("D216", "error", "Image with another number of channels",
         "The file has more or fewer channels than dataset.yaml says; none is invented or left "
         "out, except that gray becomes RGB and alpha is dropped.",
         "Write `channels:` in dataset.yaml if all images have that number; else save the image "
         "with the right channels."),
    Code("D217", "warning", "16-bit images use part of the range",
         "A sensor of 12 bits, for example, leaves 4 of the 16 unused: the images are almost "
         "black, and most of their detail is lost in the conversion to 8 bits.",
         "Write the `range:` that the finding shows in dataset.yaml. PNG keeps 16 bits for gray "
         "only: store colour as TIFF or .npy."),
    Code("D218", "error", "Image that cannot be read exactly",
         "The file is intact, but stored in a way that no library here reads without changing "
         "values.",
         "Do as the finding says: save it another way, or install the package that it names."),
    # masks
    Code("D301", "error", "Unreadable mask",
         "The file is empty or not an image in a known format.",
         "Export it again, or remove it together with its image."),
    Code("D302", "error", "Damaged mask",
         "The pixels cannot be decoded: the file is truncated or does not hold integers.",
         "Export it again, or remove it together with its image."),
    Code("D303", "error", "Image and mask differ in size",
         "The pixels of one do not match those of the other.",
         "Export the mask at the size of its image; resize masks with nearest neighbour only."),
    Code("D304", "error", "Mask in a lossy format",
         "JPEG and similar formats change ids near edges, so the true ids are lost.",
         "Export the mask again as PNG from the annotation program, or, if it is black and white, "
         "name its levels under `grey:` in dataset.yaml."),
    Code("D305", "error", "Colour mask",
         "A mask must hold one class id per pixel, not a colour.",
         "Replace each colour by its id. --fix does it if all channels are equal or every "
         "colour is that of a class in dataset.yaml.", True),
    Code("D306", "error", "Mask with an alpha channel",
         "A mask must hold one class id per pixel; transparency has no meaning in it.",
         "Save only the ids. --fix does it under the conditions of D305 if nothing is "
         "transparent.", True),
    Code("D307", "note", "16-bit mask",
         "It is read correctly here, but many programs convert it to 8 bits.",
         "Save it as an 8-bit index PNG if no id is above 255.", True),
    Code("D308", "note", "1-bit mask",
         "It is read as 0 and 1 here; other programs read 0 and 255.",
         "Save it as an 8-bit index PNG.", True),
    Code("D309", "warning", "Palette masks disagree about colours",
         "The same id has another colour in these files than in most files. If each file got its "
         "own palette, its ids mean something else.",
         "Compare the colours with the class names; export all masks with one palette."),
    Code("D310", "error", "Ids without a class",
         "A pixel with such an id would crash training or be learned as a wrong class.",
         "Name the missing classes (see D603). List an id under `ignore:` only if its pixels are "
         "to be left out of training and scores."),
    Code("D311", "error", "0/255 mask",
         "255 is not a class here, or is ignored, so the foreground would never be learned.",
         "Write `mapping: {0: 0, 255: 1}` in dataset.yaml, or store 0 and 1.", True),
    Code("D312", "error", "Ids are shifted by one",
         "They run from 1 to the number of classes and 0 never occurs, but classes count from 0.",
         "Use the `mapping:` shown under D603."),
    Code("D313", "warning", "Mask was resized with interpolation",
         "Thin rims of in-between ids lie along the edges: classes that nobody drew there.",
         "Export it again at full size, or resize the original with nearest neighbour."),
    Code("D314", "warning", "Every pixel is ignored",
         "No pixel of the mask has a class.",
         "Annotate the image or remove the pair."),
    Code("D315", "note", "Mask of a single class",
         "Correct if the image shows nothing else; often a mask that nobody finished.",
         "Look at a few of them; annotate or remove the unfinished ones."),
    Code("D316", "error", "Mask with several samples, pages or frames",
         "A mask holds one id per pixel. One sample or page for each class (one-hot) is another "
         "format.",
         "Save the index of the class instead, `samples.argmax(axis=-1)`; each page or frame in "
         "a file of its own."),
    Code("D317", "error", "Mask whose ids cannot be read exactly",
         "White is stored as zero, values are not whole or not between 0 and 65535, or the file "
         "needs another package: programs would read different ids.",
         "Export the mask as PNG with 8 or 16 bits."),
    Code("D318", "error", "Grey mask with blurred edges",
         "Few levels were drawn, and smoothing or JPEG left grey values between them. None of "
         "these is a class.",
         "Write `grey:` in dataset.yaml as shown under D603: each pixel has the class of the "
         "nearest level. --fix writes clean masks where dataset.yaml says what the levels mean.",
         True),
    Code("D319", "warning", "Grey mask without clear levels",
         "More than 20 % of its pixels are far from every level under `grey:`: a soft mask, or no "
         "mask at all. Each pixel has the class of the nearest level all the same.",
         "Look at it in the report; export it again with clear levels."),
    # classes
    Code("D401", "warning", "Class occurs nowhere",
         "No mask holds its id: the list of classes and the ids may not belong together.",
         "Remove the class from dataset.yaml, or correct `mapping:`."),
    Code("D402", "warning", "Class is absent from train",
         "It is scored in another split but can never be learned.",
         "Move some of its images to train."),
    Code("D403", "warning", "Class is absent from val or test",
         "Its score there is undefined, so it has no influence on which model is chosen.",
         "Move some of its images, from other places or videos, to that split."),
    Code("D404", "note", "Class is rare by pixels",
         "It has less than 0.5 % of the labelled pixels in train; plain cross-entropy hardly sees "
         "it.",
         "Set `class_weights=log`, or add Dice to the loss."),
    Code("D405", "note", "Class is rare by images",
         "Less than 2 % of the images in train (or a single one) show it: there is little variety "
         "to learn from.",
         "Annotate more images with it."),
    # duplicates and leakage
    Code("D501", "warning", "Duplicate image in a split",
         "It counts double in training or in the score.",
         "Keep one. --fix does it in train if the masks agree.", True),
    Code("D502", "error", "Duplicate image in two splits (leakage)",
         "The score on val or test then measures memory: the model was trained on the image.",
         "Remove it from one of the splits."),
    Code("D503", "warning", "Near-duplicates in two splits (leakage)",
         "Copies that were resized, compressed again or taken a moment later leak the answer too.",
         "Keep all versions of an image in one split."),
    Code("D504", "warning", "Video spans several splits (leakage)",
         "Frames of one numbered sequence resemble their neighbours and lie in more than one "
         "split: the score says little about other places.",
         "Split by video, not by frame; at least report a split of other videos."),
    Code("D505", "warning", "Duplicate image with different masks",
         "The annotations contradict each other; one of them is wrong.",
         "Compare the masks and keep the right one."),
    Code("D506", "warning", "Different images with the same mask",
         "Equal masks of several classes hardly occur by chance: a mask was copied or misnamed.",
         "Look at the overlays and export the right masks."),
    # statistics
    Code("D601", "note", "Mean and standard deviation of the channels",
         "For information: images are normalised as the encoder was trained, which suits nearly "
         "all of them.",
         "Nothing to do; values far from 0.5 and 0.25 point to dark, pale or recoloured images."),
    Code("D602", "note", "Class weights",
         "1 / ln(1.02 + fraction of pixels) (arXiv:1606.02147) in train, scaled to the mean 1.",
         "Set `class_weights=log` to use them if rare classes matter to you."),
    Code("D603", "note", "A dataset.yaml that fits the masks",
         "It accepts every id that occurs.",
         "Paste it, then check the names and what is ignored."),
]  # fmt: skip
CODES: dict[str, Code] = {row.code: row for row in _TABLE}
"""Every code, in order."""
