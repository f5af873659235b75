"""The shop's rules as a frozen value, read from `policy.yaml`: what is not there or not known is an error."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from transforms.errors import SettingsError

FILE = Path(__file__).with_name("policy.yaml")


class Returns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When goods are taken back; the comments of `policy.yaml` say more."""

    days: int
    days_by_category: dict[str, int]
    fault_days: int
    final_categories: tuple[str, ...]
    person_from_cents: dict[str, int]
    link: str


class Escalation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a person answers."""

    sentiment: float
    sentiment_again: float
    contacts_again: int
    confidence: float
    decisions: tuple[str, ...]


class PromptBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much a prompt holds: tokens of its user's part, earlier contacts, orders."""

    tokens: int
    history: int
    orders: int


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in the file."""

    version: str
    time_zone: str
    returns: Returns
    link_hosts: tuple[str, ...]
    reply_characters: dict[str, int]
    restore: dict[str, tuple[str, ...]]
    escalation: Escalation
    prompt: PromptBudget
    brief: PromptBudget

    def __post_init__(self) -> None:
        """Raise SettingsError for a time zone that there is none of, or a link that is not of an allowed host."""
        try:
            ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError):
            raise SettingsError(f"time_zone {self.time_zone} is not in the time zone database.") from None
        if not any(self.returns.link.startswith(f"https://{host}/") for host in self.link_hosts):
            raise SettingsError("returns.link must begin with https:// and one of link_hosts.")


def read_policy(path: Path = FILE) -> Policy:
    """Return the policy in the file. Raises SettingsError, with the file's name, for what is wrong in it."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Policy)
    except (msgspec.DecodeError, SettingsError) as error:
        raise SettingsError(f"{path}: {error}") from None


@lru_cache(maxsize=1)
def policy() -> Policy:
    """The policy that ships, read once in a process."""
    return read_policy()
