"""The views of `minigpt inspect`: one small module a few of them."""
