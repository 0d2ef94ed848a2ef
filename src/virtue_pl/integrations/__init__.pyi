from .lancedb import LanceDBEmbeddings as LanceDBEmbeddings
from .langchain import LangChainEmbeddings as LangChainEmbeddings
from .mteb import MTEBModel as MTEBModel
from .request_encoder import RequestEncoder as RequestEncoder
from .sentence_transformers import SentenceTransformerModule as SentenceTransformerModule
from .sentence_transformers import load_sentence_transformer as load_sentence_transformer
