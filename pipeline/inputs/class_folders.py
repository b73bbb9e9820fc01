"""Labels of image files by the folders in which they lie, as in Hugging Face's imagefolder."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile
from pipeline.rows import hub_features, hub_metadata


def class_folder(name: str) -> str:
    """Returns the name of the folder in which a file lies, by its name in the input; "" where it
    lies in none."""
    return name.rpartition("/")[0].rpartition("/")[2]


def label_schema(files: Sequence[InputFile], column: str) -> pa.Schema:
    """Returns the schema of one column of labels (int64), whose names are those of the files'
    folders, sorted.

    Raises UsageError where a file lies in no folder.
    """
    names = sorted({class_folder(file.name) for file in files})
    if names[0] == "":
        first = next(file.name for file in files if not class_folder(file.name))
        raise UsageError(
            f"expected each image in a folder of its class (--label-from-folder), found {first} in "
            "none; next: the folder that holds the class folders as --input"
        )
    schema = pa.schema([pa.field(column, pa.int64())])
    feature = {"names": names, "_type": "ClassLabel"}
    return schema.with_metadata(hub_metadata(schema, known={column: feature}))


def labels_of(names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Returns the labels of files by their names, as a table of the schema from `label_schema`."""
    (column,) = schema.names
    classes = {name: i for i, name in enumerate(hub_features(schema)[column]["names"])}
    labels = [classes[class_folder(name)] for name in names]
    return pa.table([pa.array(labels, pa.int64())], schema=schema)
