"""Forget, siblings and rest cover the records, and depend on nothing but which nodes are forgotten."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chip.data.hierarchy import Hierarchy, Node
from chip.data.record import Record
from chip.data.request import Partition
from chip.errors import InputError


def hierarchy(*paths: str) -> Hierarchy:
    return Hierarchy([Record("q", "a", tuple(path.split("/")), None) for path in paths])


HOSPITALS = hierarchy(
    "i1/p1/s1/findings",  # 0
    "i1/p1/s2/findings",  # 1
    "i1/p1",  # 2
    "i1/p2/s1/findings",  # 3
    "i1",  # 4
    "i2/p3/s4/impression",  # 5
    "i2/p3/s4/findings",  # 6
)


def split(*names: str) -> Partition:
    return Partition.of(HOSPITALS, [HOSPITALS.find(name) for name in names])


# --- nodes and names ---


def test_a_node_knows_its_place() -> None:
    node = Node(("i1", "p1", "s1"))
    assert (node.id, node.level, str(node), node.parent) == ("s1", "study", "i1/p1/s1", Node(("i1", "p1")))
    assert Node(("i1",)).parent is None
    assert node.contains(("i1", "p1", "s1"))
    assert node.contains(("i1", "p1", "s1", "findings"))
    assert not node.contains(("i1", "p1"))
    assert not node.contains(("i1", "p2", "s1"))


def test_nodes_come_with_their_ancestors_in_order_of_appearance() -> None:
    assert [str(n) for n in hierarchy("i2/p1", "i1", "i2/p2").nodes] == ["i2", "i2/p1", "i1", "i2/p2"]
    assert [n.id for n in HOSPITALS.children(None)] == ["i1", "i2"]
    assert [n.id for n in HOSPITALS.children(Node(("i1",)))] == ["p1", "p2"]
    assert HOSPITALS.children(HOSPITALS.find("impression")) == ()


def test_records_of_a_node_are_those_at_and_below_it() -> None:
    assert HOSPITALS.records_of(HOSPITALS.find("p1")) == [0, 1, 2]
    assert HOSPITALS.count(HOSPITALS.find("i1")) == 5
    assert HOSPITALS.records_of(Node(("elsewhere",))) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [("p2", "i1/p2"), ("i1/p1", "i1/p1"), ("p1/s1", "i1/p1/s1"), ("p3/s4/findings", "i2/p3/s4/findings")],
)
def test_a_node_is_found_by_id_or_by_the_end_of_its_path(name: str, path: str) -> None:
    assert str(HOSPITALS.find(name)) == path


def test_a_full_path_goes_before_the_end_of_another() -> None:
    assert hierarchy("a/b", "c/a/b").find("a/b") == Node(("a", "b"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("s1", "name='s1': 2 nodes are called so; use the path of one: i1/p1/s1, i1/p2/s1"),
        ("imprestion", "name='imprestion': no node is called so; did you mean impression?"),
        ("i1/p3", "name='i1/p3': no node is called so; did you mean i2/p3 or i1/p2 or i1/p1?"),
        ("xyz", "name='xyz': no node is called so; `chip tree` lists the nodes"),
        ("i2/p3/", "did you mean i2/p3"),
        ("", "name='': no node is called so"),
        ("i/p/s/x/y", "no node is called so"),
    ],
)
def test_a_name_of_none_or_several_is_refused(name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        HOSPITALS.find(name)
    assert says in str(caught.value)


def test_at_most_five_of_many_paths_are_listed() -> None:
    with pytest.raises(InputError, match=r"^name='x': 7 nodes .*i4/x, \.\.\.$"):
        hierarchy(*(f"i{k}/x" for k in range(7))).find("x")


# --- the split ---


def test_siblings_share_the_parent_and_the_rest_is_elsewhere() -> None:
    one = split("p1")
    assert one.groups == {"target": (0, 1, 2), "siblings": (3,), "other": (4, 5, 6)}  # 4: of the parent itself


def test_siblings_of_an_institution_are_the_other_institutions() -> None:
    assert split("i2").groups == {"target": (5, 6), "siblings": (0, 1, 2, 3, 4), "other": ()}


def test_a_target_may_have_no_siblings() -> None:
    only = split("p3/s4")
    assert only.siblings_of == {Node(("i2", "p3", "s4")): ()}
    assert only.retain_other == (0, 1, 2, 3, 4)


def test_a_sibling_may_hold_a_target_of_its_own() -> None:
    both = split("p2", "p1/s1")
    assert both.forget_of == {Node(("i1", "p2")): (3,), Node(("i1", "p1", "s1")): (0,)}
    assert both.siblings_of == {Node(("i1", "p2")): (1, 2), Node(("i1", "p1", "s1")): (1,)}
    assert both.siblings == (1, 2)


def test_nothing_to_forget_and_nothing_to_keep_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to forget"):
        split()
    with pytest.raises(InputError, match="nothing would be left to keep"):
        split("i1", "i2")
    with pytest.raises(InputError, match="no record lies at or below elsewhere"):
        Partition.of(HOSPITALS, [Node(("elsewhere",))])


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[tuple[str, ...]], list[Node]]:
    """Paths of records, and some of their nodes to forget that leave something."""
    places = draw(st.lists(paths, min_size=2, max_size=30))
    nodes = of(places).nodes
    targets = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=5))
    assume(any(not target.contains(place) for place in places for target in targets))
    assume(not all(any(target.contains(place) for target in targets) for place in places))
    return places, targets


def of(places: Sequence[tuple[str, ...]]) -> Hierarchy:
    return Hierarchy([Record("q", "a", place, None) for place in places])


@settings(deadline=None)
@given(requests())
def test_the_groups_are_a_partition_and_mean_what_they_say(
    request_: tuple[list[tuple[str, ...]], list[Node]],
) -> None:
    places, targets = request_
    parts = Partition.of(of(places), targets)
    assert sorted(parts.forget + parts.siblings + parts.retain_other) == list(range(len(places)))
    assert sorted(index for part in parts.forget_of.values() for index in part) == list(parts.forget)
    assert {index for part in parts.siblings_of.values() for index in part} == set(parts.siblings)
    for index, place in enumerate(places):
        assert (index in parts.forget) == any(target.contains(place) for target in targets)
        for target, neighbor_weight in parts.siblings_of.items():
            shares_parent = len(place) >= len(target.path) and (target.parent is None or target.parent.contains(place))
            assert (index in neighbor_weight) == (shares_parent and index not in parts.forget)


@settings(deadline=None)
@given(requests(), st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(
    request_: tuple[list[tuple[str, ...]], list[Node]], random: Random
) -> None:
    places, targets = request_
    order = list(range(len(places)))
    random.shuffle(order)
    before = Partition.of(of(places), targets).groups
    after = Partition.of(of([places[index] for index in order]), targets).groups
    assert {name: {order[index] for index in part} for name, part in after.items()} == {
        name: set(part) for name, part in before.items()
    }


@settings(deadline=None)
@given(requests(), st.data())
def test_a_target_inside_another_changes_nothing(
    request_: tuple[list[tuple[str, ...]], list[Node]], data: st.DataObject
) -> None:
    places, targets = request_
    whole = of(places)
    inside = [node for node in whole.nodes if any(target.contains(node.path) for target in targets)]
    more = data.draw(st.lists(st.sampled_from(inside)))
    once, twice = Partition.of(whole, targets), Partition.of(whole, targets + more)
    assert once == twice
    assert not any(a != b and a.contains(b.path) for a in once.targets for b in once.targets)
