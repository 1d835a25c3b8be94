"""Made-up damage of what comes back from annotation tools, and of a query's manifest."""

import copy
import csv
import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import ODD, fuzz, odd_bytes, odd_json, put, refused_or_taken
from test_query_folder import pictures_of, write
from test_returned import FORMATS, QUERY, TEXTS, read

from med_sslal.practice.query_folder import QueryFolder, read_query
from med_sslal.utils.errors import UserError

pytestmark = pytest.mark.slow


@st.composite
def odd_xml(draw: st.DrawFn, text: str) -> bytes:
    """An XML document with one to three elements or attributes changed, removed, or given twice."""
    root = ElementTree.fromstring(text)
    for _ in range(draw(st.integers(1, 3))):
        holder = draw(st.sampled_from([each for each in root.iter() if len(each) or each.attrib]))
        keys = [*holder.attrib, *range(len(holder))]
        key = draw(st.sampled_from(keys))
        if isinstance(key, int):
            if draw(st.booleans()):
                holder.append(copy.deepcopy(holder[key]))
            else:
                holder.remove(holder[key])
        elif draw(st.booleans()):
            odd = str(draw(st.sampled_from(ODD)))
            holder.set(key, "".join(each for each in odd if each.isprintable()))
        else:
            del holder.attrib[key]
        if not (len(root) or root.attrib):
            break
    return ElementTree.tostring(root, encoding="utf-8")


@st.composite
def odd_table(draw: st.DrawFn, text: str) -> bytes:
    """A table with one to three fields changed, removed, or given twice."""
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from([row for row in rows if row]))
        place = draw(st.integers(0, len(row) - 1))
        row[place : place + 1] = draw(
            st.sampled_from([[], [row[place]] * 2, *([str(odd)] for odd in ODD)])
        )
    made = io.StringIO()
    csv.writer(made).writerows(rows)
    return made.getvalue().encode(errors="surrogatepass")


ODD_VALUES: dict[str, Callable[[str], st.SearchStrategy[str | bytes]]] = {
    "cvat": odd_xml,
    "deeplesion": odd_table,
}


@pytest.mark.parametrize("kind", ["values", "bytes"])
@pytest.mark.parametrize("name", FORMATS)
@fuzz
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    name: str, kind: str, data: st.DataObject, tmp_path: Path
) -> None:
    made: st.SearchStrategy[str | bytes] = odd_bytes(TEXTS[name].encode())
    if kind == "values":
        made = ODD_VALUES.get(name, odd_json)(TEXTS[name])
    try:
        found = read(tmp_path, data.draw(made), QUERY, **FORMATS[name][1])
    except UserError as error:
        assert str(error)
        return
    assert len({each.image_id for each in found}) == len(found)
    sizes = {image.image_id: (image.width, image.height) for image in QUERY.images}
    for each in found:
        size = np.array(sizes[each.image_id] * 2, np.float32)
        assert (each.boxes >= 0).all() and (each.boxes <= size).all()
        assert set(each.annotation.labels.tolist()) <= {1, 2}
        assert (each.state == "labelled") == bool(len(each.labels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> QueryFolder:
    root = tmp_path_factory.mktemp("query")
    return QueryFolder.named(root, write(root, pictures_of(root / "data")).query_id)


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_manifest(kind: str, data: st.DataObject, folder: QueryFolder, tmp_path: Path) -> None:
    content = folder.manifest.read_text()
    make = odd_json(content) if kind == "values" else odd_bytes(content.encode())
    put(tmp_path / "manifest.json", data.draw(make))
    refused_or_taken(lambda: read(tmp_path, TEXTS["coco"], read_query(tmp_path)))
