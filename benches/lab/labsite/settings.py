"""The settings of the tests' application, with the addresses of the lab."""

from djangoapp.settings import *  # noqa: F403

ROOT_URLCONF = "labsite.urls"
