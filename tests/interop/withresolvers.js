// All that js-libp2p 3 takes of Node 22 here; with it, Node 20 will do.
Promise.withResolvers ??= function () {
  const out = {}
  out.promise = new this((resolve, reject) => Object.assign(out, { resolve, reject }))
  return out
}
