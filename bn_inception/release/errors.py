"""The one error of released checkpoints, for all files of this folder."""

from bn_inception.errors import UserError


class ReleaseError(UserError, ValueError):
  """A released checkpoint that cannot be used; the text is one sentence that says what is wrong with which file."""

  def __init__(self, sentence: str):
    super().__init__(" ".join(line.strip() for line in sentence.splitlines()))  # Libraries' errors have many lines.
