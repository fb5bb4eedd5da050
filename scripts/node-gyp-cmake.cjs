#!/usr/bin/env node
'use strict'
// Stands in for node-gyp where a tool insists on calling it (prebuildify, binding.gyp): whatever
// the arguments, the addon is built by cmake-js into build/Release.

const { buildNative } = require('./build-native.cjs')

process.exitCode = buildNative('inherit').status ?? 1
