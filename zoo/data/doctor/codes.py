"""Every kind of finding: its code, how bad it is, what it means and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


_FILES = [
    Code(
        "D101", "error", "The description cannot be used",
        "Without a sound dataset.yaml the ids in the masks have no names and nothing can be "
        "trained.",
        "Correct the file as the message says, or start from the one suggested under D603.",
    ),
    Code(
        "D102", "warning", "A train or val split is missing",
        "Without train nothing can be learned; without val there is nothing to choose the best "
        "epoch on.",
        "Add the folders, or name them under `splits:` in dataset.yaml.",
    ),
    Code(
        "D103", "note", "There is no test split",
        "A score on val is too good, because the best epoch was chosen on it.",
        "Keep some images, from other places or videos, for the very last measurement.",
    ),
    Code(
        "D104", "error", "A folder of a split is missing or empty",
        "The description names a folder in which no usable file lies.",
        "Correct the name under `splits:`, or put the files there.",
    ),
    Code(
        "D105", "error", "Image without mask",
        "Nothing can be learned from these images, and loading stops at them.",
        "Add the mask under the same name, or remove the image.", True,
    ),
    Code(
        "D106", "error", "Mask without image",
        "The annotation belongs to no image: a file was renamed or lost.",
        "Add the image under the same name, or remove the mask.", True,
    ),
    Code(
        "D107", "error", "Two files with the same name",
        "Only the extension differs, so it is open which of the two is meant.",
        "Keep one file for each name.",
    ),
    Code(
        "D108", "warning", "Very few images",
        "With less than 10 images to learn from, or 5 to measure on, results are mostly chance.",
        "Annotate more, or report an interval over several seeds and splits.",
    ),
]  # fmt: skip

_IMAGES = [
    Code(
        "D201", "error", "Unreadable image",
        "The file is empty or no picture in a known format.",
        "Replace it, or remove it together with its mask.",
    ),
    Code(
        "D202", "error", "Damaged image",
        "The header is sound but the pixels cannot be decoded: usually the file was cut short.",
        "Copy it again from its source, or remove it together with its mask.",
    ),
    Code(
        "D203", "error", "Image with float or 32-bit pixels",
        "There is no fixed range for such values, so they cannot become 8-bit colours.",
        "Save the image with 8 or 16 bits a channel.",
    ),
    Code(
        "D204", "warning", "Image turned by its EXIF tag",
        "Some programs show and annotate the turned image, others the stored one; where they "
        "disagree the mask lies beside the things.",
        "Look at the overlay; store the pixels turned and without the tag.", True,
    ),
    Code(
        "D205", "error", "Mask drawn on the image before its EXIF turn",
        "The mask has the size of the stored pixels, but the EXIF tag turns the image.",
        "Turn the mask as the image, and store both without the tag.", True,
    ),
    Code(
        "D206", "note", "16-bit image",
        "It is scaled so that 65535 becomes 255; a sensor of 12 bits then looks almost black.",
        "Check the brightness in the report; rescale to 8 bits yourself if it is too dark.",
    ),
    Code(
        "D207", "note", "Image with an alpha channel",
        "Transparency is dropped; colours hidden below it become visible.",
        "Save the image as RGB.", True,
    ),
    Code(
        "D208", "warning", "Image in an unusual colour space",
        "CMYK, Lab and the like are converted to RGB by a rough formula.",
        "Convert to RGB with a colour-managed program.",
    ),
    Code(
        "D209", "warning", "Image file with several frames",
        "Only the first frame or page is read.",
        "Store each frame in a file of its own.",
    ),
    Code(
        "D210", "warning", "Image of a single colour",
        "It carries no information: a failed export, or a covered lens.",
        "Replace it, or remove it together with its mask.",
    ),
    Code(
        "D211", "warning", "Image almost without contrast",
        "Its values differ by less than 2 of 255 (standard deviation): under-exposed, or badly "
        "converted.",
        "Export it again with the right range, or remove it together with its mask.",
    ),
    Code(
        "D212", "note", "Gray and colour images are mixed",
        "The rarer kind looks different to the model; where it depends on the class or the split, "
        "the model learns that instead.",
        "Check that both kinds occur in every split; convert all to gray if colour is no help.",
    ),
    Code(
        "D213", "note", "Sizes differ strongly",
        "The largest image has more than 16 times the pixels of the smallest, so one crop size "
        "cannot suit both.",
        "Tile the large images, or scale all to about the same size of things.",
    ),
    Code(
        "D214", "warning", "Tiny image",
        "Its shorter side has less than 48 pixels; an encoder that divides by 32 sees almost "
        "nothing.",
        "Use the original resolution.",
    ),
    Code(
        "D215", "warning", "Extreme shape",
        "One side is more than 4 times the other; square crops see little of it.",
        "Cut it into tiles.",
    ),
]  # fmt: skip

_MASKS = [
    Code(
        "D301", "error", "Unreadable mask",
        "The file is empty or no picture in a known format.",
        "Export it again, or remove it together with its image.",
    ),
    Code(
        "D302", "error", "Damaged mask",
        "The pixels cannot be decoded: the file was cut short or holds no whole numbers.",
        "Export it again, or remove it together with its image.",
    ),
    Code(
        "D303", "error", "Image and mask differ in size",
        "They cannot be laid over each other.",
        "Export the mask at the size of its image; scale masks with nearest neighbour only.",
    ),
    Code(
        "D304", "error", "Mask in a lossy format",
        "JPEG and its like change ids near edges, so the true ids are lost.",
        "Export the mask again as PNG from the annotation program.",
    ),
    Code(
        "D305", "error", "Colour mask",
        "A mask must hold one class id a pixel, not a colour.",
        "Replace each colour by its id. Done by --fix where all channels are equal or every "
        "colour is that of a class in dataset.yaml.", True,
    ),
    Code(
        "D306", "error", "Mask with an alpha channel",
        "A mask must hold one class id a pixel; transparency has no meaning in it.",
        "Save the ids alone. Done by --fix under the conditions of D305, with nothing "
        "transparent.", True,
    ),
    Code(
        "D307", "note", "16-bit mask",
        "It is read correctly here, but many programs squeeze it to 8 bits.",
        "Save it as an 8-bit index PNG if no id is above 255.", True,
    ),
    Code(
        "D308", "note", "1-bit mask",
        "It is read as 0 and 1 here; other programs read 0 and 255.",
        "Save it as an 8-bit index PNG.", True,
    ),
    Code(
        "D309", "warning", "Palette masks disagree about colours",
        "The same id has another colour in these files than in most. If each file was reduced to "
        "colours on its own, its ids mean something else.",
        "Compare the colours with the class names; export all masks with one palette.",
    ),
    Code(
        "D310", "error", "Ids that are no class",
        "A pixel with such an id would crash training or be learned as a wrong class.",
        "Name the missing classes, or list the ids under `mapping:` or `ignore:` (see D603).",
    ),
    Code(
        "D311", "error", "0/255 mask",
        "255 is no class here, or ignored, so the foreground would never be learned.",
        "Write `mapping: {0: 0, 255: 1}` in dataset.yaml, or store 0 and 1.", True,
    ),
    Code(
        "D312", "error", "Ids are shifted by one",
        "They run from 1 to the number of classes and 0 never occurs, while classes count from 0.",
        "Write the `mapping:` that D603 shows.",
    ),
    Code(
        "D313", "warning", "Mask was scaled with interpolation",
        "Thin rims of in-between ids lie along the edges: classes that were never drawn there.",
        "Export it again at full size, or scale the original with nearest neighbour.",
    ),
    Code(
        "D314", "warning", "Everything is ignored",
        "No pixel of the mask counts: not one class was drawn.",
        "Annotate the image or remove the pair.",
    ),
    Code(
        "D315", "note", "Mask of a single class",
        "Fine for a true view of nothing else; often a mask that was never drawn.",
        "Look at a few of them; annotate or remove the forgotten ones.",
    ),
]  # fmt: skip

_CLASSES = [
    Code(
        "D401", "warning", "A class occurs nowhere",
        "No mask holds its id: the list of classes and the ids may not belong together.",
        "Remove the class from dataset.yaml, or correct `mapping:`.",
    ),
    Code(
        "D402", "warning", "A class is absent from train",
        "It is asked for in another split but can never be learned.",
        "Move some of its images to train.",
    ),
    Code(
        "D403", "warning", "A class is absent from val or test",
        "Its score there is undefined and no choice of a model can care for it.",
        "Move some of its images, from other places or videos, to that split.",
    ),
    Code(
        "D404", "note", "A class is rare by pixels",
        "It has less than 0.5 % of the labelled pixels in train; plain cross-entropy hardly sees "
        "it.",
        "Set `class_weights=log`, or add Dice to the loss.",
    ),
    Code(
        "D405", "note", "A class is rare by images",
        "Less than 2 % of the images in train (or a single one) hold it, so it has few faces.",
        "Annotate more images with it.",
    ),
]  # fmt: skip

_COPIES = [
    Code(
        "D501", "warning", "The same image twice in a split",
        "It counts double in training or in the score.",
        "Keep one. Done by --fix for train, where the masks agree.", True,
    ),
    Code(
        "D502", "error", "The same image in two splits",
        "The score on val or test then measures memory: the model has seen the answer.",
        "Remove it from one of the splits.",
    ),
    Code(
        "D503", "warning", "Nearly the same image in two splits",
        "Copies that were scaled, stored again or filmed a moment later leak the answer too.",
        "Keep all versions of an image in one split.",
    ),
    Code(
        "D504", "warning", "One video is spread over several splits",
        "Frames of one numbered sequence resemble their neighbours and lie in more than one "
        "split: the score says little about other places.",
        "Split by video, not by frame; at least report a split of other videos.",
    ),
    Code(
        "D505", "warning", "The same image with different masks",
        "The annotations contradict each other; one of them is wrong.",
        "Compare the masks and keep the right one.",
    ),
    Code(
        "D506", "warning", "Different images with the same mask",
        "Equal masks with several classes hardly happen by chance: a mask was copied or misnamed.",
        "Look at the overlays and export the right masks.",
    ),
]  # fmt: skip

_FACTS = [
    Code(
        "D601", "note", "Mean and spread of the channels",
        "For knowledge only: a model is normalised as its encoder was trained, which fits nearly "
        "every kind of image.",
        "Nothing to do; values far from 0.5 and 0.25 tell of dark, pale or recoloured images.",
    ),
    Code(
        "D602", "note", "Weights for the classes",
        "1 / ln(1.02 + share of pixels) (arXiv:1606.02147) in train, scaled to the mean 1.",
        "Set `class_weights=log` for such weights if rare classes matter to you.",
    ),
    Code(
        "D603", "note", "A dataset.yaml that fits the masks",
        "It accepts every id that occurs.",
        "Paste it, then check the names and what is ignored.",
    ),
]  # fmt: skip

CODES: dict[str, Code] = {
    code.code: code for group in (_FILES, _IMAGES, _MASKS, _CLASSES, _COPIES, _FACTS)
    for code in group
}  # fmt: skip
"""Every code, in order."""
