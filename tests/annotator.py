"""Plays a person with an annotation tool: what the tools export for given answers.

An image without an answer is one that nobody has looked at.
"""

import json
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from med_sslal.practice.answers import Answer, Query, QueryImage


def answer_label_studio(query: Query, answers: Sequence[Answer]) -> str:
    """Label Studio's export JSON with all tasks."""
    given = {answer.image_id: answer for answer in answers}
    tasks = []
    for number, image in enumerate(query.images, start=1):
        answer = given.get(image.image_id)
        data = {"image": f"/data/local-files/?d=query_{query.query_id}/images/{image.file_name}"}
        data |= {"query_id": query.query_id, "image_id": image.image_id, "sha256": image.sha256}
        tasks.append(
            {
                "id": 100 + number,
                "annotations": _annotations(query, image, answer),
                "drafts": [number] * (answer is not None and answer.state == "in_progress"),
                "predictions": [],
                "data": data,
                "meta": {"rank": image.rank},
                "inner_id": number,
                "total_annotations": 1,
                "updated_at": "2026-03-01T10:00:00.000001Z",
                "project": 7,
            }
        )
    return json.dumps(tasks)


def _annotations(query: Query, image: QueryImage, answer: Answer | None) -> list[dict[str, Any]]:
    if answer is None or answer.state == "in_progress":
        return []
    result = []
    for number, ((x1, y1, x2, y2), label) in enumerate(
        zip(answer.boxes.astype(float).tolist(), answer.labels.tolist(), strict=True)
    ):
        value = {
            "x": 100 * x1 / image.width,
            "y": 100 * y1 / image.height,
            "width": 100 * (x2 - x1) / image.width,
            "height": 100 * (y2 - y1) / image.height,
            "rotation": 0,
            "rectanglelabels": [query.class_names[label - 1]],
        }
        result.append(
            {
                "id": f"region{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "origin": "manual",
                "value": value,
            }
        )
    return [
        {
            "id": 1,
            "completed_by": {"id": 4, "email": answer.reader} if answer.reader else 4,
            "result": result,
            "was_cancelled": answer.state == "skipped",
            "ground_truth": False,
            "created_at": "2026-03-01T09:00:00.000001Z",
            "updated_at": "2026-03-01T10:00:00.000001Z",
            "lead_time": answer.seconds,
            "prediction": {},
        }
    ]


def answer_cvat(query: Query, answers: Sequence[Answer]) -> str:
    """CVAT's export "CVAT for images 1.1": two decimals, every frame listed."""
    given = {answer.image_id: answer for answer in answers}
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(task, "name").text = f"query_{query.query_id}"
    readers = [answer.reader for answer in answers if answer.reader]
    for name in readers[:1]:
        assignee = ElementTree.SubElement(task, "assignee")
        ElementTree.SubElement(assignee, "username").text = name
    for number, image in enumerate(query.images):
        size = {"width": str(image.width), "height": str(image.height)}
        element = ElementTree.SubElement(
            root, "image", {"id": str(number), "name": image.file_name, **size}
        )
        answer = given.get(image.image_id)
        if answer is not None and answer.state in ("confirmed_empty", "skipped"):
            ElementTree.SubElement(element, "tag", label=answer.state, source="manual")
        elif answer is not None and answer.state == "labelled":
            for box, label in zip(answer.boxes.tolist(), answer.labels.tolist(), strict=True):
                corners = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
                place = {name: f"{value:.2f}" for name, value in corners}
                kind = {"label": query.class_names[label - 1], "source": "manual", "occluded": "0"}
                ElementTree.SubElement(element, "box", {**kind, **place, "z_order": "0"})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def answer_deeplesion(query: Query, answers: Sequence[Answer]) -> str:
    """A table with DeepLesion's columns: two diameters that cross, from 1 on; empty ones too."""
    names = {image.image_id: image.file_name for image in query.images}
    lines = ["File_name,Lesion_diameters_Pixel_,Measurement_coordinates,Class"]
    for answer in answers:
        name = names[answer.image_id]
        if answer.state == "confirmed_empty":
            lines.append(f"{name},,,")
        for (x1, y1, x2, y2), label in zip(answer.boxes + 1.0, answer.labels, strict=True):
            ends = ((x1, y2), (x2, (y1 + y2) / 2), ((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2))
            points = ", ".join(f"{value:.3f}" for point in ends for value in point)
            lines.append(f'{name},"9, 5","{points}",{query.class_names[label - 1]}')
    return "\r\n".join(lines)


def answer_coco(query: Query, answers: Sequence[Answer]) -> str:
    """Plain COCO of the images that are labelled or empty: it has no other state."""
    ranks = {image.image_id: image for image in query.images}
    document: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        # The numbers of a tool are its own.
        "categories": [
            {"id": 10 * number, "name": name}
            for number, name in enumerate(query.class_names, start=1)
        ],
    }
    for answer in answers:
        if answer.state not in ("labelled", "confirmed_empty"):
            continue
        image, number = ranks[answer.image_id], len(document["images"]) + 1
        document["images"].append(
            {
                "id": number,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
        )
        boxes = answer.boxes.astype(float).tolist()
        for (x1, y1, x2, y2), label in zip(boxes, answer.labels.tolist(), strict=True):
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 10 * label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [],
                    "attributes": {"occluded": False, "rotation": 0.0},
                }
            )
    return json.dumps(document)
