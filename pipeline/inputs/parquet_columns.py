"""Columns of Parquet files: which can hold images, tokens or samples, which their folders stand
for, and in what types they are read."""

from urllib.parse import unquote

import pyarrow as pa

# Of the column of a table's folder, `klass=cat/`: what Hive and all after it write for null.
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def is_image(type_: pa.DataType) -> bool:
    """Returns whether a column can hold encoded images: binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and is_image(type_.field(index).type)
    return type_ in (pa.binary(), pa.large_binary(), pa.binary_view())


def is_tokens(type_: pa.DataType) -> bool:
    """Returns whether a column can hold tokens: lists of whole numbers, of one length or any."""
    kinds = pa.types
    listed = kinds.is_list(type_) or kinds.is_large_list(type_) or kinds.is_fixed_size_list(type_)
    return bool(listed and kinds.is_integer(type_.value_type))


def is_text(type_: pa.DataType) -> bool:
    """Returns whether a column holds text."""
    return type_ in (pa.string(), pa.large_string(), pa.string_view())


def is_samples(type_: pa.DataType) -> bool:
    """Returns whether a column can hold the samples of a run: lists of tokens of one length."""
    return bool(
        pa.types.is_list(type_)
        and pa.types.is_fixed_size_list(type_.value_type)
        and is_tokens(type_.value_type)
    )


def partition_values(name: str) -> dict[str, str | None]:
    """Returns the columns that the folders of a table's file stand for, by its name in the input:
    {"klass": "cat"} for `klass=cat/part.parquet`, as Hive, Spark, DuckDB and pyarrow write them."""
    folders = (folder.partition("=") for folder in name.split("/")[:-1])
    return {
        unquote(column): None if value == _NULL_PARTITION else unquote(value)
        for column, equals, value in folders
        if column and equals
    }


def with_partitions(schema: pa.Schema, name: str) -> pa.Schema:
    """Adds the columns of a file's folders (string) that the file itself does not hold; and takes
    types that can be computed with in place of views."""
    fields = [field.with_type(_plain(field.type)) for field in schema]
    there = set(schema.names)
    fields += [pa.field(n, pa.string()) for n in partition_values(name) if n not in there]
    return pa.schema(fields, metadata=schema.metadata)


def _plain(type_: pa.DataType) -> pa.DataType:
    """Returns a type without views of text and bytes, for which Arrow lacks most functions, at any
    depth."""
    kinds = pa.types
    if type_ == pa.string_view():
        return pa.string()
    if type_ == pa.binary_view():
        return pa.binary()
    if kinds.is_struct(type_):
        return pa.struct([field.with_type(_plain(field.type)) for field in type_])
    if kinds.is_map(type_):
        return pa.map_(_plain(type_.key_type), _plain(type_.item_type))
    if kinds.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(_plain(type_.value_type)), type_.list_size)
    if kinds.is_list(type_):
        return pa.list_(type_.value_field.with_type(_plain(type_.value_type)))
    if kinds.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_plain(type_.value_type)))
    return type_
