"""XML files of others, read without the declarations that do harm."""

from pathlib import Path
from xml.etree import ElementTree

from med_sslal.utils.errors import DataError


def parse_xml(content: bytes, path: Path) -> ElementTree.Element:
    """The root element of what the file at `path` holds; DataError where it is no plain XML."""
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    # An encoding that the parser does not know is a LookupError or a ValueError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path} is not valid XML: {error}") from error
    except DataError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses the declaration that entities (bombs, files of this machine) come in."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("it declares a DOCTYPE, which an annotation file does not need")
