// The client's side of the conversation, and one exchange of everything: docs/formats/protocol.md.

import { randomBytes } from 'node:crypto'
import { concat, same } from './cbor.js'
import { Failure, fields, fromBlobs, KIND, PROTOCOL, Wire } from './frames.js'
import { certificate, checkCertificate, checkRosterEntry, CLIENT, keyFromSeed, NODE, now, sign } from './member.js'
import { cidOf, hash, LEAF, leavesIn, rootFrom, rootOf } from './shares.js'

const EMPTY = new Uint8Array(0)

function check (truth, what) {
  if (!truth) throw new Error(`wrong: ${what}`)
}

export class Conversation {
  constructor (wire) {
    this.wire = wire
    this.next = 1
    this.serial = 0
  }

  // `own` is the transport key of this side, `owner` the key that logs in.
  static async open (connection, { own, owner, cert, hiveKey }) {
    const talk = new Conversation(new Wire(await connection.newStream(PROTOCOL)))
    const { wire } = talk
    talk.owner = owner
    talk.node = connection.remotePeer.publicKey.raw
    await wire.send(KIND.HELLO, 0, ['hello', 1, [1], hiveKey])
    const challenge = talk.failing(await wire.receive())
    const [version, nonce] = fields(challenge, 'challenge', 2)
    check(version === 1 && nonce.length === 32, 'the challenge')
    talk.nonce = nonce
    const subject = owner.publicKey.raw
    const login = ['HVlogin', 1, own, talk.node, nonce, hiveKey, subject, hash(cert)]
    await wire.send(KIND.LOGIN, 0, ['login', 1, subject, await sign(owner, login)], cert)
    const welcome = talk.failing(await wire.receive())
    const [time, atATime] = fields(welcome, 'welcome', 2)
    check(BigInt(time) > 0n && atATime > 0, 'time and number of requests')
    const [ofNode, ofClient] = fromBlobs(welcome.payload)
    check(same(await checkCertificate(ofNode, hiveKey, NODE), talk.node), "the subject of the node's certificate")
    talk.certificate = ofClient
    talk.time = BigInt(time)
    return talk
  }

  failing (frame) {
    if (frame.kind === KIND.FAILURE) throw new Failure(...fields(frame, 'failure', 3))
    return frame
  }

  async ask (kind, header, payload) {
    const id = this.next++
    await this.wire.send(kind, id, header, payload)
    const frame = this.failing(await this.wire.receive())
    check(frame.id === id && frame.kind === KIND.ANSWER, `the answer to request ${id}`)
    return frame
  }

  async put (id, bytes, leaseEnd) {
    return fields(await this.ask(KIND.PUT, ['put', 1, id, leaseEnd], bytes), 'kept', 1)[0]
  }

  async get (id, offset, length) {
    const frame = await this.ask(KIND.GET, ['get', 1, id, offset, length])
    const [size, first, path] = fields(frame, 'part', 3)
    return { size, first, path, leaves: frame.payload }
  }

  async have (ids) {
    const frame = await this.ask(KIND.HAVE, ['have', 1], concat(...ids))
    fields(frame, 'sizes', 0)
    const view = new DataView(frame.payload.buffer, frame.payload.byteOffset)
    return ids.map((_, i) => view.getUint32(4 * i))
  }

  async flags (kind, header, ids) {
    const frame = await this.ask(kind, header, concat(...ids))
    fields(frame, 'flags', 0)
    return [...frame.payload]
  }

  renew (ids, leaseEnd) {
    return this.flags(KIND.RENEW, ['renew', 1, leaseEnd], ids)
  }

  // The signature as it must be, unless the test gives another one.
  async remove (ids, { serial = ++this.serial, signature } = {}) {
    const message = ['HVdelete', 1, this.node, this.owner.publicKey.raw, this.nonce, serial, hash(...ids)]
    signature ??= await sign(this.owner, message)
    return { signature, flags: await this.flags(KIND.DELETE, ['delete', 1, serial, signature], ids) }
  }

  async roster (hiveKey) {
    const entries = []
    for (let after = EMPTY, more = true; more;) {
      const frame = await this.ask(KIND.ROSTER_GET, ['roster get', 1, after])
      ;[more] = fields(frame, 'page', 1)
      const page = await Promise.all(fromBlobs(frame.payload).map((blob) => checkRosterEntry(blob, hiveKey)))
      entries.push(...page)
      after = page.at(-1)?.node ?? EMPTY
    }
    return entries
  }

  async close () {
    await this.wire.stream.close()
  }
}

async function refused (code, doing) {
  try {
    await doing
  } catch (error) {
    if (error instanceof Failure && error.code === code) return
    throw error
  }
  throw new Error(`this should have been refused with code ${code}`)
}

// Everything that a client says to a node, over one connection. Throws at the first thing that is not as the pages say.
export async function exchange (connection, { own, hive }) {
  const hiveKey = hive.publicKey.raw
  const owner = await keyFromSeed(new Uint8Array(randomBytes(32)))
  const cert = await certificate(hive, owner.publicKey.raw, CLIENT)
  const talk = await Conversation.open(connection, { own, owner, cert, hiveKey })
  check(same(talk.certificate, cert), 'the certificate in WELCOME')
  fields(await talk.ask(KIND.PING, ['ping', 1]), 'done', 0)

  const share = new Uint8Array(randomBytes(20 * LEAF + 777))
  const cid = await cidOf(share)
  const id = cid.multihash.digest
  check(same(id, hash(share)), 'the digest in the CID')
  const end = talk.time + 30n * 86_400_000_000_000n
  await refused(6, talk.put(hash(id), share, end))
  check(BigInt(await talk.put(id, share, end)) === end, 'the lease granted')
  check(same(await talk.have([id, hash(id)]), [share.length, 0]), 'HAVE')

  // An audit: some leaves in the middle, the last short one, and all; each must lead to the same root.
  const root = rootOf(share)
  const pathLengths = []
  for (const [offset, length] of [[3 * LEAF + 5, 2 * LEAF], [20 * LEAF + 700, 10], [0, 0], [LEAF, 0], [0, 1]]) {
    const part = await talk.get(id, offset, length)
    const last = length ? Math.ceil((offset + length) / LEAF) : leavesIn(share.length)
    check(part.size === share.length && part.first === Math.floor(offset / LEAF), 'size and first leaf')
    check(same(part.leaves, share.slice(part.first * LEAF, last * LEAF)), 'the bytes of the leaves')
    check(same(rootFrom(part.leaves, part.first, part.size, part.path), root), `the Merkle path of ${offset}+${length}`)
    pathLengths.push(part.path.length)
  }
  check(pathLengths[2] === 0, 'the path of all leaves is empty')
  check(same(await talk.renew([id], end + 86_400_000_000_000n), [1]), 'RENEW')

  const stat = fields(await talk.ask(KIND.STAT, ['stat', 1]), 'stat', 7)
  const roster = await talk.roster(hiveKey)
  check(roster.some((entry) => same(entry.node, talk.node)), 'the node in its own roster')

  // Nobody else's signature deletes, and none deletes twice.
  const stranger = await keyFromSeed(new Uint8Array(randomBytes(32)))
  await refused(4, talk.remove([id], { serial: 1, signature: await sign(stranger, ['HVdelete']) }))
  check(same(await talk.have([id]), [share.length]), 'the share after a forged deletion')
  return { talk, id, share, cid, stat, roster: roster.length }
}

// The last step, apart, so that the other side can look at the share in between.
export async function finish ({ talk, id, share }) {
  const { flags, signature } = await talk.remove([id])
  check(same(flags, [1]), 'DELETE')
  check(same(await talk.have([id]), [0]), 'the share after its deletion')
  await refused(5, talk.get(id, 0, 0))
  await talk.put(id, share, now() + 30n * 86_400_000_000_000n)
  await refused(4, talk.remove([id], { serial: talk.serial, signature }))
  check(same(await talk.have([id]), [share.length]), 'the share after a deletion that was used before')
  check(same((await talk.remove([id])).flags, [1]), 'DELETE again')
  await talk.close()
}
