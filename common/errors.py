"""Every error the product raises, named by what the caller can do about it."""

from __future__ import annotations

import errno


class DumontError(Exception):
    """Base of all. `code` is stable (API, CLI and docs use it); `status` is its HTTP status; str() is a sentence."""

    code = "internal"
    status = 500


class BadRequest(DumontError):
    """The input is wrong; the sentence says what and how to mend it."""

    code = "bad_request"
    status = 400


class InvalidInput(BadRequest):
    """A field does not validate; `fields` maps its path to the reason."""

    code = "invalid_input"
    status = 422

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


class Unauthenticated(DumontError):
    """No valid credentials came with the call."""

    code = "unauthenticated"
    status = 401


class Forbidden(DumontError):
    """The role of the caller does not allow this verb."""

    code = "forbidden"
    status = 403


class NotFound(DumontError):
    """Nothing of that id belongs to the caller (another tenant's id looks the same)."""

    code = "not_found"
    status = 404


class IllegalMove(DumontError):
    """The lifecycle has no such move from where the thing stands now."""

    code = "illegal_move"
    status = 409


class Repeated(DumontError):
    """Exactly this signed request came before: nothing is done a second time."""

    code = "repeated"
    status = 409


class IdempotencyMismatch(DumontError):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_mismatch"
    status = 409


class SettingError(DumontError):
    """A setting is missing or wrong; the sentence names it and gives an example."""

    code = "bad_setting"


class StoreError(DumontError):
    """Base of the store's answers."""

    code = "store"
    status = 503


class Exists(StoreError):
    """`create` met a document that is already there."""

    code = "exists"
    status = 409


class Missing(StoreError):
    """`cas`, `delete` or `increment` met no document."""

    code = "missing"
    status = 409


class Stale(StoreError):
    """Somebody wrote first: read again and decide again."""

    code = "stale"
    status = 409


class QueryRefused(StoreError):
    """The query's shape is not in the INDEXES table."""

    code = "query_refused"
    status = 500


class StoreUnavailable(StoreError):
    """The store did not answer, or the outcome of a write is unknown."""

    code = "store_unavailable"


class MarketError(DumontError):
    """Base of a marketplace's answers."""

    code = "market"
    status = 502


class OfferGone(MarketError):
    """The offer was taken: definitely nothing was rented. Take the next one."""

    code = "offer_gone"
    status = 409


class NoOffer(MarketError):
    """No offer matches the request under its price cap."""

    code = "no_offer"
    status = 409


class UnknownGpu(MarketError):
    """No marketplace has a GPU of that name."""

    code = "unknown_gpu"
    status = 422


class NoCredit(MarketError):
    """The marketplace account has no credit: stop all launches."""

    code = "no_credit"
    status = 402


class MarketRefused(MarketError):
    """A definite refusal for another reason; nothing was done unless `provider_id` names what exists all the same."""

    code = "market_refused"

    def __init__(self, message: str, provider_id: str | None = None) -> None:
        super().__init__(message)
        self.provider_id = provider_id


class Throttled(MarketError):
    """A definite refusal because of a rate limit: nothing was done. `retry_after_s` is a hint."""

    code = "throttled"
    status = 503

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(MarketError):
    """A daily quota is used up: never retry before it resets."""

    code = "quota_exceeded"
    status = 503


class MarketKeyRefused(MarketError):
    """The marketplace refuses our key."""

    code = "market_key_refused"


class MarketUnknown(MarketError):
    """No information: a timeout, a broken or unparsable answer. The call may or may not have worked."""

    code = "market_unknown"
    status = 503


class MarketSilent(MarketUnknown):
    """The same after its whole timeout had passed: who goes on asking waits as long again for each call."""


class ObjectStoreError(DumontError):
    """The object store refused or failed; the outcome of a write is unknown."""

    code = "object_store"
    status = 503


class ObjectMissing(ObjectStoreError):
    """The object store says definitely that the key does not exist."""

    code = "object_missing"
    status = 404


class DeliveryFailed(DumontError):
    """A message did not reach its target this time; another attempt may, `retry_after_s` from now (0 = our choice)."""

    code = "delivery_failed"
    status = 502

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeliveryRefused(DeliveryFailed):
    """The target, or we, refuse it for good: no further attempt is made."""

    code = "delivery_refused"


class BudgetExceeded(DumontError):
    """The account's own cap on what it spends does not allow this now."""

    code = "budget_exceeded"
    status = 402


class KeyLost(DumontError):
    """A data key cannot be opened with the secrets that are set."""

    code = "key_lost"


class SnapshotError(DumontError):
    """Base of the snapshot engine's refusals."""

    code = "snapshot"


class SnapshotDamaged(SnapshotError):
    """A snapshot's bytes are not what its manifest promises; `chunk` names the first bad one.

    A restore that raises it has changed nothing.
    """

    code = "snapshot_damaged"
    status = 409

    def __init__(self, message: str, chunk: str) -> None:
        super().__init__(message, chunk)
        self.chunk = chunk

    def __str__(self) -> str:
        return str(self.args[0])


class SnapshotRefused(SnapshotError):
    """The manifest is hostile or not authentic: nothing of it was touched."""

    code = "snapshot_refused"


class DiskFull(SnapshotError):
    """The destination has too little room; nothing was changed."""

    code = "disk_full"


def is_full(error: OSError) -> bool:
    """No room, on the disk or for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
