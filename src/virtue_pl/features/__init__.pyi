from .frozen import RecentFeatures as RecentFeatures
from .store import FeatureIndex as FeatureIndex
from .store import StoredFeatures as StoredFeatures
