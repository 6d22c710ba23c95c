"""The front matter of a card, as the hub reads it (https://huggingface.co/docs/hub/model-cards), and what a model's
metadata say of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from planner.gguf import Metadata
from planner.text import plain

__all__ = ["Facts", "facts_of", "front_matter"]

_MOST = 20  # entries of a list
_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)/?", re.ASCII)
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_WORD = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Facts:
    """What is known of a model: `base_model` as the hub calls it (ORG/NAME); licence, languages and tags by its
    metadata; whether it `chats`, by a template."""

    title: str | None
    base_model: str | None
    license: str | None
    license_name: str | None
    license_link: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    chats: bool


def facts_of(metadata: Metadata, base_model: str | None = None) -> Facts:
    """Read a model's metadata. Its `general.base_model` are what the model itself was made from, so the model is looked
    for where its weights came from: `general.source`, or `general.repo_url`, if that is on the hub."""
    texts = (metadata.text(f"general.{key}") for key in ("source.huggingface.repository", "source.repo_url",
                                                         "source.url", "repo_url"))  # fmt: skip
    found = base_model or next((known for text in texts if (known := _hub_id(text))), None)
    license_id = (metadata.text("general.license") or "").strip().lower()
    return Facts(
        title=metadata.text("general.name"),
        base_model=found,
        license=license_id if _WORD.fullmatch(license_id) else None,
        license_name=metadata.text("general.license.name"),
        license_link=metadata.text("general.license.link"),
        languages=_words(metadata, "general.languages"),
        tags=_words(metadata, "general.tags"),
        chats=bool(metadata.text("tokenizer.chat_template")),
    )


def front_matter(fields: dict[str, str | list[str] | None]) -> str:
    """Return fields as YAML between lines of dashes; those that are None or empty are left out.

    Texts are spelt as JSON, which YAML reads as such whatever is in them.
    """
    lines = ["---"]
    for key, value in fields.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {_scalar(item)}" for item in value)] if value else []
        elif value:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join([*lines, "---"])


def _scalar(text: str) -> str:
    return json.dumps(plain(text), ensure_ascii=False)


def _hub_id(text: str | None) -> str | None:
    if text is None:
        return None
    found = _HUB.fullmatch(text.strip())
    if found is not None:
        return found[1]
    return text.strip() if _ID.fullmatch(text.strip()) and "://" not in text else None


def _words(metadata: Metadata, key: str) -> tuple[str, ...]:
    """Return the short texts of a list; empty where there is none."""
    value = metadata.brief(key)
    texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    found = (text.strip().lower() for text in texts[:_MOST])
    return tuple(dict.fromkeys(text for text in found if _WORD.fullmatch(text)))
