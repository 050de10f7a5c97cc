"""When a process may take another one's place, judged by what both say of themselves."""

import pytest

from cli.family_status import front_can_replace, worker_is_known


def front(*ready: str, status: str = "ready", starting: str = "") -> dict:
    models = [{"name": name, "ready": True, "workers": []} for name in ready]
    if starting:
        models.append({"name": starting, "ready": False, "workers": []})
    return {"status": status, "models": models}


@pytest.mark.parametrize(
    ("new", "old", "can"),
    [
        (front("a", "b"), front("a"), True),
        (front("a"), front("a", starting="b"), True),
        (front("a", starting="b"), front("a", "b"), False),
        (front("a", status="not_ready"), front("a"), False),
        ({}, front("a"), False),
        (front(status="not_ready"), front(status="not_ready"), True),
        (front(status="not_ready"), {}, True),
        ({}, {}, False),
    ],
)
def test_a_front_door_must_serve_what_the_one_before_it_does(new, old, can):
    assert front_can_replace(new, old) is can


def front_with(**workers: bool) -> dict:
    known = [{"id": name, "connected": connected} for name, connected in workers.items()]
    return {"status": "ready", "models": [{"name": "m", "ready": True, "workers": known}]}


@pytest.mark.parametrize(
    ("status", "fronts", "is_known"),
    [
        ("ready", [front_with(w=True), front_with(w=True, v=False)], True),
        ("ready", [], True),
        ("ready", [front_with(w=True), front_with(w=False)], False),
        ("ready", [front_with(w=True), front_with(v=True)], False),
        ("not_ready", [front_with(w=True)], False),
    ],
)
def test_a_worker_must_be_connected_to_every_front_door(status, fronts, is_known):
    assert worker_is_known({"status": status, "instance_id": "w"}, fronts) is is_known


def test_a_worker_that_does_not_answer_is_not_known():
    assert not worker_is_known({}, [front_with(w=True)])
