"""What a message carries besides what its writer wrote: signatures, lines of mail programs, legal notices, warnings of gateways."""

from __future__ import annotations

import re

MAX_SIGNATURE_LINES = 8
"""How many lines may follow a closing, such as *Kind regards*, for it to be one."""

MAX_SIGNATURE_CHARS = 80
"""How long each of them may be; a question is never one of them."""

_SEPARATOR = re.compile(r"-- ?|_{5,}")
_SENT_FROM = re.compile(
    r"""(?:sent\ (?:from|via)\ |get\ outlook\ for|von\ mein\w+\ .*gesendet|gesendet\ (?:von|mit)\ |envoyé\ (?:de|depuis)\
      |enviado\ (?:desde|do|a\ partir\ do)\ |inviato\ da(?:l\ mio)?\ |verzonden\ (?:vanaf|met|vanuit)\ |wysłane\ z\
      |iPhoneから送信|outlook\ (?:für|pour|para|per|voor|dla)\ ).*""",
    re.VERBOSE | re.IGNORECASE,
)
_CLOSING = re.compile(
    r"""(?:(?:with\ )?(?:kind|best|warm(?:est)?|many)?\ ?regards|kind\ wishes|best\ wishes|all\ the\ best|best|cheers|sincerely
      |yours(?:\ (?:sincerely|faithfully|truly))?|(?:many\ )?thanks(?:\ (?:and\ regards|in\ advance|again))?|thank\ you
      |(?:mit\ )?(?:freundliche[nm]?|beste[nm]?|herzliche[nm]?|viele[nm]?|liebe)\ gr(?:ü|ue)(?:ß|ss)en?|mfg|danke(?:\ im\ voraus)?
      |(?:bien\ )?cordialement|(?:meilleures|sincères)\ salutations|salutations|bien\ à\ vous|merci(?:\ d['\u2019]avance)?
      |(?:un\ )?saludos?(?:\ cordial(?:es)?)?|atentamente|un\ cordial\ saludo|gracias
      |(?:cordiali|distinti)\ saluti|saluti|un\ saluto|grazie
      |(?:met\ )?(?:vriendelijke\ )?(?:groet(?:en|jes)?)|mvg|alvast\ bedankt
      |(?:z\ )?(?:poważaniem|wyrazami\ szacunku)|pozdrawiam|pozdrowienia
      |(?:com\ os\ )?(?:melhores\ )?cumprimentos|atenciosamente|atentamente|obrigad[oa]
      |(?:よろしくお願い(?:いた)?します|敬具))[\ ]?[,.!。]?""",
    re.VERBOSE | re.IGNORECASE,
)
_NOTICE = re.compile(
    r"""(?:\W*confidentiality\ notice|\W*disclaimer\b|this\ (?:e-?mail|message)\b.{0,80}\b(?:confidential|intended|privileged)
      |diese\ (?:e-?mail|nachricht)\b.{0,80}\bvertraulich|ce\ (?:message|courriel|mail)\b.{0,80}\bconfidentiel
      |este\ (?:mensaje|correo)\b.{0,80}\bconfidencial|quest[ao]\ (?:e-?mail|messaggio)\b.{0,80}\b(?:riservat|confidenzial)
      |(?:dit|deze)\ (?:bericht|e-?mail)\b.{0,80}\bvertrouwelijk|esta\ mensagem\b.{0,80}\bconfidencia
      |niniejsza\ wiadomość\b.{0,80}\bpoufn|please\ consider\ the\ environment|bitte\ denken\ sie\ an\ die\ umwelt
      |scanned\ (?:by|for)\ )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_WARNING = re.compile(
    r"\W*(?:\[external\]|external (?:e-?mail|sender)\b|caution:.{0,40}\b(?:outside|external)\b|achtung:.{0,20}\bextern).*",
    re.IGNORECASE,
)


def without_boilerplate(text: str) -> str:
    """Return `text` without what nobody wrote to be read.

    Cut are: all from a signature's separator (``--``, RFC 3676, section 4.3) or a line such as *Sent from my phone*; a closing
    (*Kind regards*, in nine languages) with up to `MAX_SIGNATURE_LINES` lines, names and addresses, that end the text;
    paragraphs that are legal notices; lines in which a gateway warns of mail from outside. Where nothing would be left, nothing
    is cut: a message that is only a greeting is still a message.
    """
    paragraphs = [part for part in re.split(r"\n{2,}", text) if not _NOTICE.match(part.strip())]
    lines = [line for line in "\n\n".join(paragraphs).split("\n") if not _WARNING.fullmatch(line.strip())]
    kept = "\n".join(lines[: _end(lines)]).strip()
    return kept if any(char.isalnum() for char in kept) else text


def _end(lines: list[str]) -> int:
    """The number of lines before the signature."""
    end = len(lines)
    for at, line in enumerate(lines):
        if _SEPARATOR.fullmatch(line.strip()) or _SENT_FROM.fullmatch(line.strip()):
            end = at
            break
    for at in range(max(0, end - MAX_SIGNATURE_LINES - 1), end):
        if _CLOSING.fullmatch(lines[at].strip()) and all(_may_sign(line) for line in lines[at + 1 : end]):
            return at
    return end


def _may_sign(line: str) -> bool:
    """Whether a line can stand in a signature: short, and no question."""
    return len(line) <= MAX_SIGNATURE_CHARS and "?" not in line
