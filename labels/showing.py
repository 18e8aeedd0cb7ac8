"""Any text as something to look at: prompts and outputs are data, whatever they contain."""
import re
import unicodedata

from markupsafe import Markup, escape  # comes with torch, and with Flask

from data.records import ASSISTANT, HUMAN

# Characters without a shape of their own, which could hide or reorder what stands around them.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028\u2029"
                    "\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")


def hidden_name(character):
    """A short visible name: U+202E, or the picture of a control character."""
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"U+{code:04X}"


def shown(text):
    """A text as HTML: escaped, and with a visible mark for each hidden character."""
    parts, end = [], 0
    for found in HIDDEN.finditer(text):
        name = unicodedata.name(found[0], "control character").lower()
        parts += [escape(text[end : found.start()]),
                  Markup('<span class="hidden" title="{}">{}</span>').format(
                      name, hidden_name(found[0]))]
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def turns(prompt):
    """A chat's prompt as [(who, text)]; a prompt that is no chat as [("", prompt)]. Nothing is
    lost: the texts and their marks together are the prompt."""
    if not (prompt.startswith(HUMAN) and ASSISTANT in prompt):
        return [("", prompt)]
    pieces = re.split(f"(?:^|\n\n)({re.escape(HUMAN)}|{re.escape(ASSISTANT.strip())})", prompt)
    return [(who.rstrip(":"), said.strip()) for who, said in zip(pieces[1::2], pieces[2::2])
            if said.strip() or who == HUMAN]
