from .frames import FrameStream as FrameStream
from .model import VAE as VAE
from .training import VisionConfig as VisionConfig
from .training import train_vision as train_vision
