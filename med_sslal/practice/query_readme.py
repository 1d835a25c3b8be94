"""What a query's folder says to the person who labels it."""

from med_sslal.practice.answers import Query

_TEXT = """# Query {query_id}: {number} image(s) to be looked at

Classes: {classes}. Draw a tight, upright rectangle around every object. The copies in `images/`
have the pixel size of the originals; boxes that are there already are a model's predictions, to be
corrected, and on some images none is shown on purpose.{padding} What comes back is one of four
states:

| state | what it means | Label Studio | CVAT |
|---|---|---|---|
| labelled | these are all the objects | boxes, Submit | boxes |
| confirmed empty | looked at: there is no object | Submit, no box | tag `confirmed_empty` |
| skipped | cannot be judged; not asked again | Skip | tag `skipped` |
| pending | not looked at yet (a draft: in progress) | nothing submitted | no box and no tag |

An image without a mark stays pending: it is never taken for an empty one.

{beside}## Label Studio

Two commands do all of it, with a token of yours from Account & Settings in LABEL_STUDIO_TOKEN.
FOLDER is the path of this folder in its run, which `python -m med_sslal status RUN` prints:

    python -m med_sslal query push FOLDER --url http://localhost:8080
    python -m med_sslal query pull FOLDER --url http://localhost:8080

By hand:

1. Put this folder into a folder ROOT, and start Label Studio with the environment variables
   `LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true` and
   `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=ROOT`.
2. Make a project, and put `labeling_config.xml` into Settings, Labeling Interface, Code.
3. Add the storage, without which no picture loads: Settings, Cloud Storage, Add Source Storage,
   Local files, with the path `ROOT/{folder}` (a subfolder of ROOT) and files treated as source
   files. Do not sync it, which would make tasks of its own. Or by the API: POST
   `{{"project": ID, "path": "ROOT/{folder}", "use_blob_urls": true}}` to
   `/api/storages/localfiles`.
4. Import `label_studio.json`, once: a second time doubles every task.
5. Export all tasks as JSON:
   `/api/projects/ID/export?exportType=JSON&download_all_tasks=true`.
   JSON_MIN and Label Studio's COCO lose states and are refused.

Where `label_studio.json` holds the pictures themselves (data URIs), steps 1 and 3 fall away.

## CVAT

1. Make a task named `{folder}`, with the labels of `cvat_labels.json` (Raw), and upload the files
   of `images/`.
2. If the predictions are wanted, upload `coco.json` as annotations (COCO 1.0). Every image with a
   box then comes back as labelled, looked at or not: do this only if all will be looked at.
3. Export the task as "CVAT for images 1.1", and unpack `annotations.xml`. Its COCO loses the tags.

## Any other tool

`coco.json` is plain COCO with the predictions, for the files of `images/`. COCO does not tell an
empty image from one that nobody has looked at, nor a skipped one: leave images that are skipped or
pending out of the file, or say with `--unmarked empty` or `--unmarked pending` what images without
a box are.

## The way back

    python -m med_sslal import FOLDER FILE

FOLDER is the path of this folder in its run, FILE what a tool exported.
Everything is checked before anything is taken; all rows that are wrong are listed. `manifest.json`
must stay as it is.
"""


_PADDING = """
The labels of this run are wider than their objects: your boxes are widened by {:g} pixels on each
side when they come back, those that you leave as they are shown are not."""

_BESIDE = """## To look at beside an image

`images/related_images` has a folder for each image: it in other windows of its values, and the
slices before and after it in its series. Draw on the images alone. Label Studio shows them below
the image; CVAT beside it where the task is made of an archive: zip what is in `images/`.

"""


def query_readme(query: Query, folder: str, *, beside: bool) -> str:
    """The steps for each tool, for the query in a folder of that name.

    `beside` where there is more to look at beside the images.
    """
    padding = _PADDING.format(query.box_padding_px) if query.box_padding_px else ""
    return _TEXT.format(
        padding=padding,
        beside=_BESIDE if beside else "",
        query_id=query.query_id,
        number=len(query.images),
        classes=", ".join(query.class_names),
        folder=folder,
    )
