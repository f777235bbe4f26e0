"""The name under which `minigpt.formats.tokenizer_files` was known first."""

from minigpt.formats.tokenizer_files import load_hf_tokenizer as load_hf_tokenizer
from minigpt.formats.tokenizer_files import save_hf_tokenizer as save_hf_tokenizer
