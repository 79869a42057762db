"""A person signs a release: from then on candidates are also held against it."""

from trueup.errors import DataError
from trueup.records import Release
from trueup.store import Store

__all__ = ["approve"]


def approve(store: Store, by: str, *, release_id: str | None = None, note: str = "") -> Release:
    """Record who approved a release, and when. What serves stays as it is.

    Again: the same person approving the same release with the same note writes nothing new.

    Args:
        by: a name that a reader will know.
        release_id: by default the release that serves.

    Raises:
        DataError: nothing has been released, or there is no name.
        RecordNotFound: there is no such release.
    """
    signed = store.get(Release, release_id) if release_id else store.champion()
    if signed is None or not by.strip():
        raise DataError(
            "An approval needs a release and a person",
            got=f"{by!r}, {'no release' if signed is None else signed.id}",
            expected="a name, and a release that serves or served",
            next="promote a checkpoint first, or give a name",
        )
    if signed.action == "approve" and signed.restores:
        signed = store.get(Release, signed.restores)
    approval = Release(
        action="approve",
        weights=signed.weights,
        checkpoint_id=signed.checkpoint_id,
        restores=signed.id,
        approved_by=by.strip(),
        reason=note,
    )
    store.add(approval)
    return approval
