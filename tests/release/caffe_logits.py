"""Makes caffe_logits.npz: python -m tests.release.caffe_logits, with opencv-python-headless 4.13.0.92.

OpenCV's reader of Caffe files (cv2.dnn; version 5 has it no more) computes the network of `test_caffe.Lim` for two
images of noise. The file has the logits, and check sums of the weights and images they are of.
"""

import pathlib
import zlib

import cv2
import numpy as np

from tests.release import test_caffe

PATH = pathlib.Path(__file__).with_suffix(".npz")


def main() -> None:
  lim = test_caffe.Lim()
  content = test_caffe.write(test_caffe.message_classes(), lim.layers)
  network = cv2.dnn.readNetFromCaffe(
    np.frombuffer("\n".join(lim.text).encode(), np.uint8), np.frombuffer(content, np.uint8)
  )
  images = test_caffe.noise()
  logits = []
  for image in images[:, :, :, ::-1].astype(np.float32) - np.float32([104, 117, 123]):
    network.setInput(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
    logits.append(network.forward()[0])
  np.savez(PATH, logits=np.array(logits), weights=test_caffe.crc_of(lim), images=zlib.crc32(images))


if __name__ == "__main__":
  main()
