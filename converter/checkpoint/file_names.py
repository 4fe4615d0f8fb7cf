"""The names under which stock code, and this package, look for the files of a checkpoint."""

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_SINGLE_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
MANIFEST_FILE = "s4convert.json"

# Not a checkpoint's: which files of a repository git keeps elsewhere. The Hub puts one in every repository.
GIT_ATTRIBUTES_FILE = ".gitattributes"
