// Frames of the conversation: docs/formats/protocol.md.

import { byteStream } from '@libp2p/utils'
import { concat, decode, encode } from './cbor.js'

export const PROTOCOL = '/hivefs/node/1'
export const KIND = {
  HELLO: 1, CHALLENGE: 2, LOGIN: 3, WELCOME: 4, ANSWER: 5, FAILURE: 6, CANCEL: 7,
  PUT: 16, GET: 17, HAVE: 18, DELETE: 19, RENEW: 20, HEAD_PUT: 21, HEADS_GET: 22, ROSTER_GET: 23, ROSTER_PUT: 24, STAT: 25, PING: 26,
  HIVE_STATE: 27, MEMBERS_GET: 28, MEMBERS_PUT: 29, REVOKED_GET: 30, REVOKED_PUT: 31
}
const MOST = 2 * 1024 * 1024 + 4096
const NONE = new Uint8Array(0)

export class Failure extends Error {
  constructor (code, transient, text) {
    super(`failure ${code}: ${text}`)
    Object.assign(this, { code, transient })
  }
}

export class Wire {
  constructor (stream) {
    this.stream = stream
    this.bytes = byteStream(stream)
  }

  async send (kind, id, header, payload = NONE) {
    const head = header.length ? encode(header) : NONE
    const start = new DataView(new ArrayBuffer(11))
    start.setUint32(0, 7 + head.length + payload.length)
    start.setUint8(4, kind)
    start.setUint32(5, id)
    start.setUint16(9, head.length)
    await this.bytes.write(concat(new Uint8Array(start.buffer), head, payload))
  }

  async receive (options) {
    const start = (await this.bytes.read({ bytes: 11, ...options })).subarray()
    const view = new DataView(start.buffer, start.byteOffset, 11)
    const length = view.getUint32(0)
    const headLength = view.getUint16(9)
    if (length > MOST || headLength > 2048 || length < 7 + headLength) throw new Error(`a frame of ${length} bytes`)
    const rest = length > 7 ? (await this.bytes.read({ bytes: length - 7, ...options })).subarray() : NONE
    const frame = { kind: view.getUint8(4), id: view.getUint32(5), header: [], payload: rest.slice(headLength) }
    if (headLength) frame.header = decode(rest.slice(0, headLength))
    return frame
  }
}

// What is behind name and version.
export function fields (frame, name, count) {
  const [found, version, ...rest] = frame.header
  if (found !== name || version !== 1 || rest.length !== count) {
    throw new Error(`expected ${name} with ${count} fields and got kind ${frame.kind}: ${JSON.stringify(frame.header)}`)
  }
  return rest
}

export function fromBlobs (payload) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length)
  const blobs = []
  for (let position = 0; position < payload.length;) {
    const size = view.getUint32(position)
    position += 4
    if (position + size > payload.length) throw new Error('a blob is cut off')
    blobs.push(payload.slice(position, position + size))
    position += size
  }
  return blobs
}

export function toBlobs (blobs) {
  return concat(...blobs.flatMap((blob) => {
    const size = new Uint8Array(4)
    new DataView(size.buffer).setUint32(0, blob.length)
    return [size, blob]
  }))
}
