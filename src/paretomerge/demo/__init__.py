"""The demonstration that comes with the package."""

from paretomerge.demo.run import ADA as ADA
from paretomerge.demo.run import NAMES as NAMES
from paretomerge.demo.run import PM_ALL as PM_ALL
from paretomerge.demo.run import PM_ATTENTION as PM_ATTENTION
from paretomerge.demo.run import PM_FITTED as PM_FITTED
from paretomerge.demo.run import SOUPS as SOUPS
from paretomerge.demo.run import TA as TA
from paretomerge.demo.run import Demo as Demo
from paretomerge.demo.run import assets as assets
from paretomerge.demo.run import between as between
from paretomerge.demo.run import draw as draw
from paretomerge.demo.run import load as load
