from .frozen import FeatureCache as FeatureCache
from .store import FeatureIndex as FeatureIndex
from .store import StoredFeatures as StoredFeatures
