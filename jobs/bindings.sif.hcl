# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# What the operators of a fabric grant to the teams of the two applications.
# Only an operator can apply it; after that, a domain that no binding covers
# selects nothing.

binding "getaway-app" {
  nomad {
    jobs = ["getaway", "getaway-*", "news-gw", "places-gw", "weather-gw"]
  }
  outside {
    prefixes = ["10.99.0.0/24"]
    names    = ["news.example.com", "places.example.com", "weather.example.net"]
    ports    = [18080]
  }
}

binding "voting-app" {
  nomad {
    jobs = ["voting", "voting-*"]
  }
  outside {
    prefixes = ["10.99.0.0/24"]
    ports    = [18081]
  }
}
