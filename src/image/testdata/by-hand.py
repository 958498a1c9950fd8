#!/usr/bin/env python3
"""Makes by-hand.img: a small sealed image, computed without any code of this project.

    by-hand.py > by-hand.img

It exists so that reader (src/image) and writer (integration/softuv) can not share one mistake: the
reader is tested against this file, and the writer must make the same bytes from the same inputs. All
keys and "random" values are hashes of texts. Nothing here can boot: the loaders are placeholders.
Needs pyca/cryptography. Layout: s390-tools, rust/pvimg.
"""
import hashlib
import struct
import sys

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PAGE = 4096


def sha256(text): return hashlib.sha256(text).digest()
def sha512(text): return hashlib.sha512(text).digest()
def u64(n): return struct.pack('>Q', n)
def u32(n): return struct.pack('>I', n)
def pages(n): return -(-n // PAGE) * PAGE


def key(text):
    return ec.derive_private_key(int.from_bytes(sha512(text), 'big'), ec.SECP521R1())


def point(private):
    numbers = private.public_key().public_numbers()
    return numbers.x.to_bytes(80, 'big') + numbers.y.to_bytes(80, 'big')


# The inputs.
kernel = bytes((i * i >> 3) & 255 for i in range(5000))
ramdisk = bytes((i * 3) & 255 for i in range(4097))
command_line = b'console=ttysclp0 swiotlb=262144\0'
stage3a = bytearray(i & 255 for i in range(4392))
stage3b = bytearray((255 - i) & 255 for i in range(200))
hosts = [key(b'another host key'), key(b'host key')]
customer = key(b'customer key')
header_key = sha256(b'header key')
iv = sha256(b'iv')[:12]
cck = sha256(b'cck')
xts = sha512(b'xts')
flags = 0xe0

# Components: kernel, ramdisk, command line; the loader of the sealed part knows where they are.
at = 0x10000 + pages(len(stage3a))
parts = []
for kind, name, content in [(40, b'kernel', kernel), (50, b'ramdisk', ramdisk), (60, b'command line', command_line)]:
    parts.append((kind, name, content, at))
    at += pages(len(content))
(k, r, c) = parts
stage3b[-64:] = b''.join(u64(n) for n in [
    k[3], len(kernel), c[3], len(command_line), r[3], len(ramdisk), 0x180000000, 0x10000])
stage3b_at = at
parts.append((70, b'stage3b', bytes(stage3b), at))
at += pages(len(stage3b))

image = bytearray(at)
contents, addresses, tweaks, listed, count = hashlib.sha512(), hashlib.sha512(), hashlib.sha512(), b'', 0
for kind, name, content, address in parts:
    prefix = struct.pack('>H', kind) + sha256(b'tweak ' + name)[:6]
    padded = content.ljust(pages(len(content)), b'\0')
    for page in range(0, len(padded), PAGE):
        tweak = (int.from_bytes(prefix + bytes(8), 'big') + page).to_bytes(16, 'big')
        sealer = Cipher(algorithms.AES(xts), modes.XTS(tweak)).encryptor()
        sealed = sealer.update(padded[page:page + PAGE]) + sealer.finalize()
        image[address + page:address + page + PAGE] = sealed
        contents.update(sealed)
        addresses.update(u64(address + page))
        tweaks.update(tweak)
        count += 1
    listed += prefix + u64(address) + u64(len(padded))

# The header.
slots = b''
for host in hosts:
    shared = customer.exchange(ec.ECDH(), host.public_key())
    assert len(shared) == 66
    wrapping = sha256(shared + u32(1))
    slots += sha256(point(host)) + AESGCM(wrapping).encrypt(bytes(12), header_key, None)
secret = cck + xts + u64(0x180000000) + u64(stage3b_at) + u64(0) + u32(0) + u32(0)
size = 416 + len(slots) + len(secret) + 16
clear = (b'IBMSecEx' + u32(0x100) + u32(size) + iv + u32(0) + u64(len(hosts)) + u64(len(secret)) + u64(count)
         + u64(flags) + point(customer) + contents.digest() + addresses.digest() + tweaks.digest() + slots)
header = clear + AESGCM(header_key).encrypt(iv, secret, clear)
assert len(header) == size
header_at = len(image)
image += header.ljust(pages(len(header)), b'\0')

# The IPL information block.
ipib_at = len(image)
inner = (bytes([5, 0, 0, 0]) + bytes(8) + bytes(87) + bytes([1]) + bytes(4) + u32(len(parts))
         + u64(header_at) + u64(len(header)) + listed)
inner = u32(len(inner) + 4) + inner
image += u32(len(inner) + 8) + bytes([0, 0, 0, 1]) + inner

# The clear part.
arguments_at = 0x10000 + len(stage3a) - 24
stage3a[-24:] = u64(header_at - arguments_at) + u64(len(header)) + u64(ipib_at - arguments_at)
image[0x10000:0x10000 + len(stage3a)] = stage3a
image[0:8] = u64(0x0008000180011000)
image[0xc000:0xc000 + 28] = b'SeImgLnx' + u64(header_at) + u32(1) + u64(ipib_at)
sys.stdout.buffer.write(image)

print(f'header {header_at:#x} size {size} ipib {ipib_at:#x} file {len(image):#x}\n'
      f'tag {header[-16:].hex()}\nslot 1 {slots[80:160].hex()}\niv {iv.hex()}\n'
      f'content {contents.hexdigest()}\naddresses {addresses.hexdigest()}\ntweaks {tweaks.hexdigest()}\n'
      f'customer {point(customer).hex()}\nlist {listed.hex()}', file=sys.stderr)
