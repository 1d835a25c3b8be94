"""Pascal VOC: one XML file per image; read and written."""

import logging
from pathlib import Path
from xml.etree import ElementTree

from med_sslal.base.base_dataset import BaseDataset, Images, Labels
from med_sslal.data.bad_samples import BadSamples, OnBadSample
from med_sslal.data.pictures import (
    BoxRecord,
    PictureImages,
    Window,
    find_pictures,
    make_labels,
    make_splits,
    no_picture,
    read_infos,
)
from med_sslal.data.splits import Classes, EvalSplit, FolderInRoot, GroupPattern, SplitFiles
from med_sslal.logger.progress import track
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import atomic_write, inside
from med_sslal.utils.xml_files import parse_xml

logger = logging.getLogger(__name__)

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class PascalVOC(BaseDataset):
    """A folder with Annotations/ID.xml, JPEGImages/ID.jpg (or .jpeg, .png) and ImageSets/Main/.

    The image id is the file name without its ending. Pixels are 1-based and inclusive, as the
    format defines them (in BCCD too: its coordinates run from 1 to the width), so a box becomes
    (xmin - 1, ymin - 1, xmax, ymax) in continuous coordinates. A box whose xmin equals its xmax is
    a slip of the mouse and counts as zero-area. `difficult` objects become ignore regions.
    """

    def __init__(
        self,
        root: str,
        *,
        annotations: FolderInRoot = "Annotations",
        images: FolderInRoot = "JPEGImages",
        classes: Classes | None = None,
        eval_split: EvalSplit = 0.2,
        split_seed: int = 0,
        split_lists: SplitFiles | None = None,
        group_pattern: GroupPattern | None = None,
        window: Window | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        """Read all annotations and check that the image files are whole.

        Args:
            root: The folder that holds the folders of annotations and images.
            annotations: Folder in root with the XML files.
            images: Folder in root with the pictures.
            classes: Class names in order of their labels; null takes the names found, sorted.
            eval_split: Share of groups held out, half for validation and half for test.
            split_seed: Seed of the split.
            split_lists: File names in ImageSets/Main for train, val and test, instead of
                eval_split; images on no list are left out.
            group_pattern: Regular expression searched in the image id; its first group is the
                patient. null: every image by itself.
            window: Lowest and highest value of 16-bit grey pixels, mapped to 0 and 1; null: all
                pictures have 8 bits.
            on_bad_sample: "error" lists all bad files and boxes; "skip" leaves them out.
        """
        folder = Path(root)
        bad = BadSamples(on_bad_sample, str(folder))
        documents = _xml_files(folder, folder / annotations)
        pictures, _ = find_pictures(folder / images)
        if not pictures:
            raise no_picture(folder / images, "dataset.args.images")
        lists = None if split_lists is None else _lists(folder, split_lists)
        wanted = sorted({i for ids in lists.values() for i in ids} if lists else documents)
        if left_out := len(documents.keys() - set(wanted)):
            logger.info("%s: %d annotated images are on no list and left out", root, left_out)

        for kind, there in (("picture", pictures), ("annotation file", documents)):
            for image_id in [each for each in wanted if each not in there]:
                bad.add(f"image '{image_id}' has no {kind} in {folder}")
                wanted.remove(image_id)
        files = track(
            [(name, pictures[name]) for name in wanted], f"headers of {root}", len(wanted)
        )
        infos = read_infos(folder, files, group_pattern, bad, window)
        records: dict[str, list[BoxRecord]] = {}
        for image_id, info in infos.items():
            with bad.noted():
                records[image_id] = load_voc(documents[image_id], info.orig_size, bad)
        infos = {image_id: info for image_id, info in infos.items() if image_id in records}
        found = sorted({record.name for boxes in records.values() for record in boxes})
        if classes is None and not found:
            # Rather than that there is no class: what is wrong with all files is why.
            bad.finish()
        labels = make_labels(records, found if classes is None else classes, infos, bad)
        bad.finish()
        splits = make_splits(infos, lists, eval_split, split_seed)
        super().__init__(PictureImages(folder, infos, splits, window), labels)


def load_voc(path: Path, size: tuple[int, int], bad: BadSamples) -> list[BoxRecord]:
    """Read the annotation file of a picture of (height, width); `bad` has objects that are wrong.

    DataError where the file is not such XML, or tells another image size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    tree = parse_xml(content, path)
    told = (tree.findtext("size/height"), tree.findtext("size/width"))
    # Some tools write no size, or 0.
    if all(told) and told != ("0", "0") and told != tuple(map(str, size)):
        raise DataError(
            f"{path} is about a picture of {told[1]}x{told[0]} pixels, but its picture has "
            f"{size[1]}x{size[0]}"
        )
    records = []
    for number, element in enumerate(tree.findall("object"), start=1):
        with bad.noted():
            name = (element.findtext("name") or "").strip()
            texts = [element.findtext(f"bndbox/{corner}") for corner in CORNERS]
            where = f"{path}, object {number}"
            try:
                x1, y1, x2, y2 = (float(text or "nothing") for text in texts)
            except ValueError as error:
                raise DataError(
                    f"{where}: {', '.join(CORNERS)} must be numbers, found {texts}"
                ) from error
            if not name:
                raise DataError(f"{where}: it has no class name")
            if x2 <= x1 or y2 <= y1:
                raise DataError(f"{where} ({name}): box ({', '.join(map(str, texts))}) has no area")
            difficult = (element.findtext("difficult") or "0").strip() == "1"
            records.append(BoxRecord(where, name, (x1 - 1, y1 - 1, x2, y2), difficult))
    return records


def save_voc(folder: Path, images: Images, labels: Labels) -> None:
    """Write the labelled images' annotation files `folder/<image id>.xml` for `load_voc`.

    DataError where an image id is no file name, UserError where a file cannot be written.
    """
    for image_id, label in labels.annotations.items():
        if Path(image_id).name != image_id:
            raise DataError(f"image id '{image_id}' is a path: Pascal VOC files lie in one folder")
        info = images.infos[image_id]
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(info.file_name).name
        size = ElementTree.SubElement(root, "size")
        for tag, value in zip(("height", "width", "depth"), (*info.orig_size, 3), strict=True):
            ElementTree.SubElement(size, tag).text = str(value)
        columns = (label.boxes.tolist(), label.labels.tolist(), label.ignore.tolist())
        for (x1, y1, x2, y2), number, ignore in zip(*columns, strict=True):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = labels.class_names[number - 1]
            ElementTree.SubElement(element, "difficult").text = str(int(ignore))
            corners = ElementTree.SubElement(element, "bndbox")
            for tag, corner in zip(CORNERS, (x1 + 1, y1 + 1, x2, y2), strict=True):
                ElementTree.SubElement(corners, tag).text = format(corner, ".17g")
        ElementTree.indent(root)
        atomic_write(folder / f"{image_id}.xml", ElementTree.tostring(root, encoding="utf-8"))


def _xml_files(root: Path, folder: Path) -> dict[str, Path]:
    files = {path.stem: path for path in sorted(folder.glob("*.xml"))}
    if not files:
        gone = next((path for path in (root, folder) if not path.is_dir()), None)
        problem = f"{folder} has no XML file" if gone is None else f"folder {gone} does not exist"
        raise DataError(
            f"no Pascal VOC data at {root}: {problem}; set dataset.args.root to the folder that "
            "holds Annotations and JPEGImages, or dataset.args.annotations and "
            "dataset.args.images to the names that they have there"
        )
    return files


def _lists(root: Path, split_lists: dict[str, str]) -> dict[str, list[str]]:
    """Image ids of each split: the first word of each line of its list."""
    lists = {}
    for split, name in split_lists.items():
        path = inside(root / "ImageSets" / "Main", name)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"dataset.args.split_lists.{split}: cannot read {path}: {error}"
            ) from error
        lists[split] = [line.split()[0] for line in lines if line.strip()]
    return lists
