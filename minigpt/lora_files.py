"""The name under which `minigpt.formats.lora_files` was known first."""

from minigpt.formats.lora_files import load_adapter as load_adapter
from minigpt.formats.lora_files import save_adapter as save_adapter
