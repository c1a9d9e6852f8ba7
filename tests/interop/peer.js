// A js-libp2p peer that a test steers: one JSON object a line on standard input, one answer a line on standard output.
//
//   node peer.js tls|noise|tls,noise|noise,tls HIVE_KEY_FILE

import './withresolvers.js'
import { createInterface } from 'node:readline'
import { createHash, randomBytes } from 'node:crypto'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { tls } from '@libp2p/tls'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { exchange, finish } from './client.js'
import { KIND, PROTOCOL } from './frames.js'
import { certificate, keyFromSeed, loadHive, NODE, rosterEntry } from './member.js'
import { Node } from './node.js'

const DEADLINE = 30_000
const [securities, hiveFile] = process.argv.slice(2)
const hive = await loadHive(hiveFile)
const key = await keyFromSeed(new Uint8Array(randomBytes(32)))
const host = await createLibp2p({
  privateKey: key,
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: securities.split(',').map((name) => ({ tls, noise })[name]()),
  // Left alone it lets the other end send 16 MiB at a time, and aborts a stream that is paused with more than 4 MiB unread.
  streamMuxers: [yamux({ streamOptions: { maxStreamWindowSize: 4 << 20, maxReadBufferLength: 8 << 20 } })],
  // More than a few connections a second from one address are refused otherwise, and a busy machine is taken for a dead peer.
  connectionManager: { inboundConnectionThreshold: 1000 },
  connectionMonitor: { pingInterval: 500, pingTimeout: { minTimeout: DEADLINE, maxTimeout: DEADLINE } },
  connectionGater: { denyDialMultiaddr: () => false },
  // Both are also done without being asked: each new peer is identified, and the monitor pings.
  services: { identify: identify({ maxOutboundStreams: 4 }), ping: ping({ maxOutboundStreams: 4 }) }
})
const own = key.publicKey.raw
const address = host.getMultiaddrs()[0].toString()
const attributes = [['country', 'DE', 1], ['operator', 'js', 1]]
const cert = await certificate(hive, own, NODE, attributes)
const node = new Node({ key, cert, entry: await rosterEntry(key, cert, [address]), hiveKey: hive.publicKey.raw })
await host.handle(PROTOCOL, node.handler())

let last

const signal = () => AbortSignal.timeout(DEADLINE)

// The connection to a peer, opened by this side or, when it must be inbound, by the other one; waited for.
async function connectionTo (to, inbound) {
  if (!inbound) return host.dial(multiaddr(to), { signal: signal() })
  const until = Date.now() + DEADLINE
  for (;;) {
    const found = host.getConnections().find((c) => c.direction === 'inbound' && to.endsWith(c.remotePeer.toString()))
    if (found) return found
    if (Date.now() > until) throw new Error('nobody dialled')
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

async function meet (connection) {
  const identified = await host.services.identify.identify(connection, { signal: signal() })
  return {
    direction: connection.direction,
    encryption: connection.encryption,
    multiplexer: connection.multiplexer,
    roundTrip: await host.services.ping.ping(connection.remotePeer, { signal: signal() }),
    protocols: identified.protocols,
    agent: identified.agentVersion,
    listens: identified.listenAddrs.map(String),
    observed: identified.observedAddr?.toString()
  }
}

const commands = {
  // identify and ping; the connection stays.
  async meet ({ to, inbound }) {
    return meet(await connectionTo(to, inbound))
  },

  async exchange ({ to }) {
    const connection = await connectionTo(to, false)
    const met = await meet(connection)
    last = await exchange(connection, { own, hive })
    return {
      ...met,
      cid: last.cid.toString(),
      share: Buffer.from(last.id).toString('hex'),
      size: last.share.length,
      roster: last.roster,
      version: last.stat.at(-1)
    }
  },

  async finish () {
    await finish(last)
    return {}
  },

  // The connections to a peer.
  async connections ({ to }) {
    const found = host.getConnections().filter((connection) => to.endsWith(connection.remotePeer.toString()))
    return { connections: found.map(({ direction, encryption, rtt }) => ({ direction, encryption, rtt })) }
  },

  // What somebody who logged in here asked for. Waits until it has come and gone again: a connection that is being closed
  // must not be taken for the next thing to do. One that was given up half-way, as on a busy machine, is followed by another.
  async guest ({ subject }) {
    const until = Date.now() + DEADLINE
    const gone = ({ subject: who, connection, asked }) =>
      Buffer.from(who).toString('hex') === subject && connection.status !== 'open' && asked.includes(KIND.ROSTER_GET)
    while (!node.guests.some(gone)) {
      if (Date.now() > until) throw new Error('it did not come, or did not leave')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const guest = node.guests.find(gone)
    return { node: guest.node, encryption: guest.connection.encryption, asked: guest.asked, roster: node.roster.size }
  },

  // Bulk both ways on one connection: the windows of both multiplexers have to be moved many times.
  async echo ({ to, protocol, size }) {
    const connection = await connectionTo(to, false)
    const stream = await connection.newStream(protocol)
    const message = new Uint8Array(randomBytes(size))
    let position = 0
    const back = (async () => {
      for await (const part of stream) {
        const bytes = part.subarray()
        if (Buffer.compare(bytes, message.subarray(position, position + bytes.length))) throw new Error('other bytes')
        position += bytes.length
      }
    })()
    for (let from = 0; from < size; from += 65536) {
      if (!stream.send(message.subarray(from, from + 65536))) await stream.onDrain({ signal: signal() })
    }
    await stream.close({ signal: signal() })
    await back
    return { position }
  },

  // Reads all that comes, and twice in between nothing for a while: the other end has to wait and must not lose anything.
  async drain ({ to, protocol, pauses }) {
    const connection = await connectionTo(to, false)
    const stream = await connection.newStream(protocol)
    let size = 0
    const sum = createHash('sha256')
    for await (const part of stream) {
      sum.update(part.subarray())
      size += part.byteLength
      if (size > pauses[0]) {
        pauses.shift()
        stream.pause()
        await new Promise((resolve) => setTimeout(resolve, 300))
        stream.resume()
      }
    }
    await stream.close({ signal: signal() })
    return { size, sha256: sum.digest('hex') }
  }
}

const say = (answer) => process.stdout.write(JSON.stringify(answer, (_, v) => typeof v === 'bigint' ? v.toString() : v) + '\n')

say({ address, key: Buffer.from(own).toString('hex') })
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line)
  try {
    say(await commands[command](options))
  } catch (error) {
    say({ error: error.stack })
  }
}
await host.stop()
