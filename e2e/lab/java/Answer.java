// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;

/** Answers each connection to a port of its with one line of HTTP, for tests of the java driver. */
public class Answer {
    public static void main(String[] args) throws Exception {
        byte[] answer = "HTTP/1.0 200 OK\r\n\r\njava\n".getBytes(StandardCharsets.US_ASCII);
        try (ServerSocket server = new ServerSocket(Integer.parseInt(args[0]))) {
            while (true) {
                try (Socket caller = server.accept()) {
                    caller.getOutputStream().write(answer);
                }
            }
        }
    }
}
