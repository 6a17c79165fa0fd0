# SPDX-License-Identifier: Apache-2.0
"""Reads TensorBoard's event files, from their description and with nothing of TensorBoard's."""
import struct


def crc32c(data):
    """Bit by bit, as the polynomial is defined: no table to share a mistake with."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    at = 0
    while at < len(data):
        length, = struct.unpack_from("<Q", data, at)
        if struct.unpack_from("<I", data, at + 8)[0] != masked(data[at:at + 8]):
            raise ValueError(f"the length at byte {at} is damaged")
        body = data[at + 12:at + 12 + length]
        if len(body) != length or struct.unpack_from("<I", data, at + 12 + length)[0] != masked(body):
            raise ValueError(f"the record at byte {at} is damaged")
        yield body
        at += 16 + length


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """{number of a field: its values, in their order}; of a message its bytes."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif kind == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif kind == 2:
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
        else:
            raise ValueError(f"no wire type {kind}")
        found.setdefault(key >> 3, []).append(value)
    return found


def events(path):
    """Of each event its step, and {tag: a number, a text, or ("histogram", limits, counts)}; of the
    first the file's version, and of a start of a session "start"."""
    with open(path, "rb") as file:
        data = file.read()
    for record in records(data):
        event = fields(record)
        step = event.get(2, [0])[0]
        values = {}
        if 3 in event:
            values["version"] = event[3][0].decode()
        if 7 in event:
            values["start"] = fields(event[7][0])[1][0]
        for value in map(fields, fields(event[5][0]).get(1, []) if 5 in event else []):
            tag = value[1][0].decode()
            if 2 in value:
                values[tag] = value[2][0]
            elif 5 in value:
                histogram = fields(value[5][0])
                limits, counts = (struct.unpack(f"<{len(histogram[n][0]) // 8}d", histogram[n][0]) for n in (6, 7))
                values[tag] = ("histogram", limits, counts)
            else:
                plugin = fields(fields(value[9][0])[1][0])[1][0].decode()
                values[tag] = (plugin, fields(value[8][0])[8][0].decode())
        yield step, values
