// The node's side of the conversation, with shares in memory: docs/formats/protocol.md.

import { randomBytes } from 'node:crypto'
import { concat, same } from './cbor.js'
import { fields, fromBlobs, KIND, toBlobs, Wire } from './frames.js'
import { checkCertificate, checkRosterEntry, CLIENT, NODE, now, verify } from './member.js'
import { hash, LEAF, leavesIn, pathOf } from './shares.js'

const hex = (bytes) => Buffer.from(bytes).toString('hex')
const DAY = 86_400_000_000_000n
const MOST_DAYS = 730n

class Refusal extends Error {
  constructor (code, text) {
    super(text)
    this.code = code
  }
}

export class Node {
  constructor ({ key, cert, entry, hiveKey }) {
    Object.assign(this, { key, cert, hiveKey })
    this.shares = new Map()
    this.roster = new Map([[hex(key.publicKey.raw), entry]])
    this.guests = []
  }

  handler () {
    return async (stream, connection) => {
      const wire = new Wire(stream)
      try {
        const guest = await this.greet(wire, connection)
        this.guests.push(guest)
        for (;;) {
          const frame = await wire.receive()
          if (frame.kind === KIND.CANCEL) continue
          await this.answer(wire, frame, guest)
        }
      } catch (error) {
        if (error instanceof Refusal) await wire.send(KIND.FAILURE, 0, ['failure', 1, error.code, false, error.message])
        else if (error.name !== 'UnexpectedEOFError' && error.name !== 'StreamResetError') {
          console.error(`the conversation ended: ${error.stack}`)
        }
        await stream.close()
      }
    }
  }

  async greet (wire, connection) {
    const transportKey = connection.remotePeer.publicKey.raw
    const [versions, wanted] = fields(await wire.receive(), 'hello', 2)
    if (!versions.includes(1)) throw new Refusal(2, 'this node speaks version 1')
    if (wanted.length && !same(wanted, this.hiveKey)) throw new Refusal(3, 'this is another hive')
    const nonce = new Uint8Array(randomBytes(32))
    await wire.send(KIND.CHALLENGE, 0, ['challenge', 1, 1, nonce])
    const login = await wire.receive()
    const [subject, signature] = fields(login, 'login', 2)
    const said = ['HVlogin', 1, transportKey, this.key.publicKey.raw, nonce, wanted, subject, hash(login.payload)]
    if (!await verify(subject, said, signature)) throw new Refusal(3, 'the signature is wrong')
    const node = same(subject, transportKey)
    if (!same(await checkCertificate(login.payload, this.hiveKey, node ? NODE : CLIENT), subject)) {
      throw new Refusal(3, 'the certificate is of somebody else')
    }
    await wire.send(KIND.WELCOME, 0, ['welcome', 1, now(), 16], toBlobs([this.cert, login.payload]))
    return { node, subject, nonce, serial: 0n, asked: [], connection }
  }

  async answer (wire, frame, guest) {
    guest.asked.push(frame.kind)
    try {
      const [header, payload] = await this.work(frame, guest)
      await wire.send(KIND.ANSWER, frame.id, header, payload)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      await wire.send(KIND.FAILURE, frame.id, ['failure', 1, error.code, false, error.message])
    }
  }

  async work (frame, guest) {
    const { kind, payload } = frame
    if (kind === KIND.PING) return [['done', 1]]
    if (kind === KIND.STAT) {
      const used = [...this.shares.values()].reduce((sum, share) => sum + share.length, 0)
      return [['stat', 1, 1 << 30, used, (1 << 30) - used, this.shares.size, 0, now(), 'js']]
    }
    if (kind === KIND.ROSTER_GET) {
      const after = hex(fields(frame, 'roster get', 1)[0])
      const keys = [...this.roster.keys()].sort().filter((key) => key > after)
      return [['page', 1, false], toBlobs(keys.map((key) => this.roster.get(key)))]
    }
    if (kind === KIND.ROSTER_PUT) {
      let news = 0
      for (const entry of fromBlobs(payload)) {
        const { node } = await checkRosterEntry(entry, this.hiveKey)
        if (!this.roster.has(hex(node))) news++
        this.roster.set(hex(node), entry)
      }
      return [['taken', 1, news]]
    }
    // Nobody was invited into this hive, and nobody revoked.
    if (kind === KIND.HIVE_STATE) return [['hive state', 1, 0, new Uint8Array(32)]]
    if (kind === KIND.MEMBERS_GET || kind === KIND.REVOKED_GET) return [['page', 1, false]]
    if (kind === KIND.MEMBERS_PUT || kind === KIND.REVOKED_PUT) return [['taken', 1, 0]]
    if (guest.node) throw new Refusal(4, 'this is for clients')
    return this.workOnShares(frame, guest)
  }

  async workOnShares (frame, guest) {
    const { kind, payload } = frame
    if (kind === KIND.PUT) {
      const [id, end] = fields(frame, 'put', 2)
      if (!same(hash(payload), id)) throw new Refusal(6, 'the bytes have another hash')
      this.shares.set(hex(id), payload)
      return [['kept', 1, granted(end)]]
    }
    if (kind === KIND.GET) {
      const [id, offset, length] = fields(frame, 'get', 3)
      const share = this.shares.get(hex(id))
      if (!share) throw new Refusal(5, 'the share is not here')
      const first = Math.floor(offset / LEAF)
      const last = length ? Math.ceil((offset + length) / LEAF) : leavesIn(share.length)
      if (offset + length > share.length) throw new Refusal(1, 'the range is beyond the share')
      return [['part', 1, share.length, first, pathOf(share, first, last)], share.slice(first * LEAF, last * LEAF)]
    }
    const ids = Array.from({ length: payload.length / 32 }, (_, i) => payload.slice(32 * i, 32 * i + 32))
    if (kind === KIND.HAVE) {
      const sizes = new DataView(new ArrayBuffer(4 * ids.length))
      ids.forEach((id, i) => sizes.setUint32(4 * i, this.shares.get(hex(id))?.length ?? 0))
      return [['sizes', 1], new Uint8Array(sizes.buffer)]
    }
    if (kind === KIND.RENEW) return [['flags', 1], Uint8Array.from(ids, (id) => this.shares.has(hex(id)) ? 1 : 0)]
    if (kind === KIND.DELETE) {
      const [serial, signature] = fields(frame, 'delete', 2)
      const said = ['HVdelete', 1, this.key.publicKey.raw, guest.subject, guest.nonce, serial, hash(concat(...ids))]
      if (BigInt(serial) <= guest.serial || !await verify(guest.subject, said, signature)) throw new Refusal(4, 'not signed')
      guest.serial = BigInt(serial)
      return [['flags', 1], Uint8Array.from(ids, (id) => this.shares.delete(hex(id)) ? 1 : 0)]
    }
    throw new Refusal(1, `kind ${kind} is nothing that this node does`)
  }
}

function granted (end) {
  const [least, most] = [now() + DAY, now() + MOST_DAYS * DAY]
  const wanted = BigInt(end)
  return wanted < least ? least : wanted > most ? most : wanted
}
