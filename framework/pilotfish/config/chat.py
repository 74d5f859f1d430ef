"""What a chat template may be given, by name.

Knows: names. Does not know: templates, or which of the variables one reads.
"""

from __future__ import annotations

CHAT_OPTIONS = (
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
)
"""The keywords of `ChatTemplate.render`."""

COMMON_VARIABLES = (
    "enable_thinking",
    "thinking",
    "reasoning_effort",
    "preserve_thinking",
    "clear_thinking",
    "xml_tools",
    "python_tools",
    "builtin_tools",
    "custom_tools",
    "tools_in_user_message",
    "date_string",
)
"""What published templates read of their callers. One that does not is rendered without it."""
