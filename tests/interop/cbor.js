// The part of canonical CBOR (RFC 8949, section 4.2) that the formats use: whole numbers, bytes, text, arrays, booleans, null.

const UTF8 = new TextDecoder('utf-8', { fatal: true })

function head (major, value) {
  const n = BigInt(value)
  if (n < 0n || n >= 1n << 64n) throw new Error(`${n} does not fit`)
  if (n < 24n) return Uint8Array.of((major << 5) | Number(n))
  const size = n < 1n << 8n ? 1 : n < 1n << 16n ? 2 : n < 1n << 32n ? 4 : 8
  const out = new Uint8Array(1 + size)
  out[0] = (major << 5) | (24 + Math.log2(size))
  for (let i = 0; i < size; i++) out[size - i] = Number((n >> BigInt(8 * i)) & 255n)
  return out
}

export function concat (...parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let position = 0
  for (const part of parts) {
    out.set(part, position)
    position += part.length
  }
  return out
}

export function encode (value) {
  if (value === null) return Uint8Array.of(0xf6)
  if (value === false || value === true) return Uint8Array.of(value ? 0xf5 : 0xf4)
  if (typeof value === 'number' || typeof value === 'bigint') return head(0, value)
  if (value instanceof Uint8Array) return concat(head(2, value.length), value)
  if (typeof value === 'string') {
    const text = new TextEncoder().encode(value)
    return concat(head(3, text.length), text)
  }
  if (Array.isArray(value)) return concat(head(4, value.length), ...value.map(encode))
  throw new Error(`no form for ${value}`)
}

// Numbers above 2**53 come as BigInt.
export function decode (bytes) {
  let position = 0
  const take = (size) => {
    if (position + size > bytes.length) throw new Error('cut off')
    position += size
    return bytes.subarray(position - size, position)
  }
  const item = () => {
    const first = take(1)[0]
    const major = first >> 5
    const low = first & 31
    if (major === 7) {
      if (low === 20 || low === 21) return low === 21
      if (low === 22) return null
      throw new Error(`byte ${first} is in no format`)
    }
    if (low > 27) throw new Error('indefinite lengths are in no format')
    let n = BigInt(low)
    if (low >= 24) {
      n = 0n
      for (const byte of take(1 << (low - 24))) n = (n << 8n) | BigInt(byte)
    }
    const small = n <= BigInt(Number.MAX_SAFE_INTEGER)
    if (major === 0) return small ? Number(n) : n
    if (!small) throw new Error('too long')
    if (major === 2) return take(Number(n)).slice()
    if (major === 3) return UTF8.decode(take(Number(n)))
    if (major === 4) return Array.from({ length: Number(n) }, item)
    throw new Error(`byte ${first} is in no format`)
  }
  const value = item()
  if (position !== bytes.length) throw new Error('there is more behind the value')
  if (!same(encode(value), bytes)) throw new Error('not the canonical form')
  return value
}

export function same (a, b) {
  return a.length === b.length && a.every((byte, i) => byte === b[i])
}
