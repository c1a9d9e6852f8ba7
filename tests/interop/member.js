// Keys, membership certificates and roster entries: docs/formats/member.md and hive-key.md.

import { readFileSync } from 'node:fs'
import { generateKeyPairFromSeed, publicKeyFromRaw } from '@libp2p/crypto/keys'
import { decode, encode, same } from './cbor.js'

export const CLIENT = 1
export const NODE = 2

export const keyFromSeed = (seed) => generateKeyPairFromSeed('Ed25519', seed)
export const sign = async (key, value) => new Uint8Array(await key.sign(encode(value)))
export const verify = async (publicKey, value, signature) => publicKeyFromRaw(publicKey).verify(encode(value), signature)

export async function loadHive (file) {
  const found = JSON.parse(readFileSync(file, 'ascii'))
  if (found.format !== 'hivefs-hive-key' || found.version !== 1) throw new Error('this is no key of a hive')
  const key = await keyFromSeed(new Uint8Array(Buffer.from(found.seed, 'hex')))
  if (!same(key.publicKey.raw, new Uint8Array(Buffer.from(found.hive, 'hex')))) throw new Error('key and seed are no pair')
  return key
}

export const now = () => BigInt(Date.now()) * 1_000_000n

export async function certificate (hive, subject, roles, attributes = []) {
  const body = ['HVmember', 1, [hive.publicKey.raw, subject, roles, attributes, now(), 0, 1]]
  return encode([...body, await sign(hive, body)])
}

export async function checkCertificate (bytes, hiveKey, role) {
  const [name, version, fields, signature] = decode(bytes)
  const [hive, subject, roles] = fields
  if (name !== 'HVmember' || version !== 1) throw new Error('this is no membership certificate')
  if (!same(hive, hiveKey)) throw new Error('the certificate is of another hive')
  if (!(roles & role)) throw new Error('the certificate has another role')
  if (!await verify(hiveKey, [name, version, fields], signature)) throw new Error('the signature of the hive is wrong')
  return subject
}

export async function rosterEntry (key, cert, addresses) {
  const body = [key.publicKey.raw, addresses, 1]
  const signature = await sign(key, ['HVaddress', 1, ...body])
  return encode(['HVroster', 1, cert, [...body, signature]])
}

export async function checkRosterEntry (bytes, hiveKey) {
  const [name, version, cert, [node, addresses, sequence, signature]] = decode(bytes)
  if (name !== 'HVroster' || version !== 1) throw new Error('this is no roster entry')
  if (!same(await checkCertificate(cert, hiveKey, NODE), node)) throw new Error('certificate and address are of two nodes')
  if (!await verify(node, ['HVaddress', 1, node, addresses, sequence], signature)) throw new Error('the signature of the node is wrong')
  return { node, addresses }
}
