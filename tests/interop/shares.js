// What a share is called, and the Merkle tree over it: docs/formats/protocol.md.

import { createHash } from 'node:crypto'
import { blake3 } from '@noble/hashes/blake3.js'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { concat } from './cbor.js'

export const LEAF = 64 * 1024

const derive = (what) => new TextEncoder().encode(`hivefs/1 share merkle ${what}`)
const [LEAF_CONTEXT, NODE_CONTEXT, ROOT_CONTEXT] = ['leaf', 'node', 'root'].map(derive)
const under = (context, bytes) => blake3(bytes, { context })

export const hash = (...parts) => new Uint8Array(createHash('sha256').update(concat(...parts)).digest())

export async function cidOf (bytes) {
  return CID.createV1(raw.code, await sha256.digest(bytes))
}

export function u64 (value) {
  const out = new Uint8Array(8)
  new DataView(out.buffer).setBigUint64(0, BigInt(value))
  return out
}

export const leavesIn = (size) => Math.ceil(size / LEAF)

function leafHashes (bytes) {
  return Array.from({ length: leavesIn(bytes.length) }, (_, i) => under(LEAF_CONTEXT, bytes.slice(i * LEAF, (i + 1) * LEAF)))
}

// The largest power of two below count.
function split (count) {
  let left = 1
  while (left * 2 < count) left *= 2
  return left
}

function top (hashes) {
  if (hashes.length === 1) return hashes[0]
  const left = split(hashes.length)
  return under(NODE_CONTEXT, concat(top(hashes.slice(0, left)), top(hashes.slice(left))))
}

export const rootOf = (bytes) => under(ROOT_CONTEXT, concat(top(leafHashes(bytes)), u64(bytes.length)))

export function pathOf (bytes, first, last) {
  const hashes = leafHashes(bytes)
  const path = []
  const walk = (from, count) => {
    if (from + count <= first || from >= last) path.push(top(hashes.slice(from, from + count)))
    else if (count > 1) {
      walk(from, split(count))
      walk(from + split(count), count - split(count))
    }
  }
  walk(0, hashes.length)
  return path
}

// The root that these leaves lead to; an error unless they are whole leaves and each hash of the path is used once.
export function rootFrom (leaves, firstLeaf, size, path) {
  const hashes = leafHashes(leaves)
  const end = firstLeaf + hashes.length
  if (Math.min(end * LEAF, size) - firstLeaf * LEAF !== leaves.length) throw new Error('these are not whole leaves')
  const rest = [...path]
  const walk = (from, count) => {
    if (from + count <= firstLeaf || from >= end) {
      if (!rest.length) throw new Error('the path is too short')
      return rest.shift()
    }
    if (count === 1) return hashes[from - firstLeaf]
    const left = split(count)
    const one = walk(from, left)
    return under(NODE_CONTEXT, concat(one, walk(from + left, count - left)))
  }
  const found = walk(0, leavesIn(size))
  if (rest.length) throw new Error('the path is too long')
  return under(ROOT_CONTEXT, concat(found, u64(size)))
}
