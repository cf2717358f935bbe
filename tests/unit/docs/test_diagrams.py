"""The pictures show the wings and the files that there are."""

from xml.etree import ElementTree

import pytest

from docs_generators.benchmark_results import REPOSITORY
from docs_generators.data_flow_diagram import ASKING, BUILDING, data_flow_svg
from docs_generators.wings_diagram import LIBRARY, contract_layers, wings_svg

TEXT = "{http://www.w3.org/2000/svg}text"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(TEXT)]


def test_the_wings_are_those_of_the_contract_and_of_the_library() -> None:
    shown = texts(wings_svg(REPOSITORY))
    names = [name.removeprefix(f"{LIBRARY}.") for layer in contract_layers(REPOSITORY) for name in layer]
    assert [name for name in shown if name in names] == names
    folders = {path.parent.name for path in (REPOSITORY / LIBRARY).glob("*/__init__.py")}
    assert folders <= set(names)


@pytest.mark.parametrize("stage", [*BUILDING, *ASKING], ids=lambda stage: stage.name)
def test_the_files_of_a_stage_exist_and_fit_into_its_box(stage) -> None:
    for name in stage.files:
        folder = REPOSITORY if name.startswith("tasks/") else REPOSITORY / LIBRARY
        assert (folder / name).is_file(), name
    assert len(", ".join(stage.files)) <= 49
    assert stage.name in texts(data_flow_svg())


def test_the_pictures_leave_the_background_to_the_page() -> None:
    for svg in (wings_svg(REPOSITORY), data_flow_svg()):
        root = ElementTree.fromstring(svg)
        assert not any(element.get("width") == "100%" for element in root.iter())
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
