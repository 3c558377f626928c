"""Data of the world-facts questions beside GeoNames: other names of places and currencies, and exceptions.

Countries are given by their ISO 3166-1 code of two letters, currencies by their ISO 4217 code.
"""

from __future__ import annotations


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Further names in common English use; the name in the data comes first among a question's answers.
COUNTRY_ALIASES: dict[str, tuple[str, ...]] = {
    "AE": ("UAE",),
    "BA": ("Bosnia", "Bosnia-Herzegovina", "Bosnia & Herzegovina"),
    "BN": ("Brunei Darussalam",),
    "BS": ("The Bahamas",),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa", "Democratic Republic of Congo"),
    "CG": ("Congo-Brazzaville", "Congo Republic", "Republic of Congo"),
    "CI": ("Côte d'Ivoire", "Cote d'Ivoire"),
    "CN": ("People's Republic of China", "PRC"),
    "CV": ("Cape Verde",),
    "CZ": ("Czech Republic",),
    "FM": ("Federated States of Micronesia",),
    "GB": ("UK", "U.K.", "Great Britain", "Britain", "United Kingdom of Great Britain and Northern Ireland"),
    "GM": ("The Gambia",),
    "IE": ("Republic of Ireland",),
    "IR": ("Islamic Republic of Iran",),
    "KG": ("Kyrgyz Republic",),
    "KP": ("DPRK", "Democratic People's Republic of Korea"),
    "KR": ("Republic of Korea", "Korea"),
    "LA": ("Lao PDR", "Lao People's Democratic Republic"),
    "MK": ("Macedonia",),
    "MM": ("Burma",),
    "NL": ("The Netherlands", "Holland"),
    "RU": ("Russian Federation",),
    "ST": ("São Tomé and Príncipe",),
    "SY": ("Syrian Arab Republic",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor",),
    "TR": ("Türkiye", "Turkiye"),
    "TW": ("Republic of China",),
    "TZ": ("United Republic of Tanzania",),
    "US": ("United States of America", "USA", "US", "U.S.", "U.S.A.", "America"),
    "VN": ("Viet Nam",),
}

# GeoNames' name first where another is the usual one.
COUNTRY_NAMES = {"NL": "Netherlands", "TL": "Timor-Leste"}

# Names that take "the" though nothing in their wording says so.
WITH_ARTICLE = _codes("BS GM IM KM MV NL PH SC")

# Dependent territories: "in which country" has no single answer for their cities.
TERRITORIES = _codes(
    "AI AS AW AX BL BM CK CW FO GF GG GI GL GP GU HK IM JE KY MF MO MP MQ MS NC PF PM PR RE SH SX TC VG VI "
    "WF YT"
)

# Former countries (still in the data), three islands taken as one, and those of disputed status or borders.
LEFT_OUT = _codes("AN BQ CS EH PS XK")

# Capitals whose spelling differs between sources, usual name first; the others are as in the data.
CAPITAL_NAMES: dict[str, tuple[str, ...]] = {
    "AG": ("St. John's", "Saint John's"),
    "BR": ("Brasília", "Brasilia"),
    "CH": ("Bern", "Berne"),
    "CM": ("Yaoundé", "Yaounde"),
    "CO": ("Bogotá", "Bogota"),
    "CR": ("San José", "San Jose"),
    "GD": ("St. George's", "Saint George's"),
    "GG": ("St. Peter Port", "Saint Peter Port"),
    "GU": ("Hagåtña", "Hagatna"),
    "IS": ("Reykjavik", "Reykjavík"),
    "JE": ("Saint Helier", "St. Helier"),
    "KI": ("South Tarawa", "Tarawa"),
    "KZ": ("Astana", "Nur-Sultan"),
    "MD": ("Chișinău", "Chisinau", "Kishinev"),
    "MM": ("Naypyidaw", "Nay Pyi Taw", "Naypyitaw"),
    "MN": ("Ulaanbaatar", "Ulan Bator"),
    "MV": ("Malé", "Male"),
    "MX": ("Mexico City", "Ciudad de México"),
    "NC": ("Nouméa", "Noumea"),
    "PY": ("Asunción", "Asuncion"),
    "ST": ("São Tomé", "Sao Tome"),
    "TD": ("N'Djamena", "Ndjamena"),
    "TG": ("Lomé", "Lome"),
    "TM": ("Ashgabat", "Ashkhabad"),
    "TO": ("Nuku\u02bbalofa", "Nuku'alofa"),
    "UA": ("Kyiv", "Kiev"),
    "US": ("Washington, D.C.", "Washington", "Washington DC", "DC"),
    "WF": ("Mata-Utu", "Mata Utu"),
    "YE": ("Sanaa", "Sana'a"),
}

# No answer, several, a disputed one, or one that changed lately: no question of that relation.
NO_CAPITAL = _codes("BO GQ IL LK MS NR PW SZ ZA")
NO_CONTINENT = _codes("AM AU AZ CY EG GE ID KZ RU TL TR")
NO_CURRENCY = _codes("BG GG IM JE LS PA ZW")
NO_CALLING_CODE = _codes("SX")  # the data give the code of Curaçao, which it left
NO_DOMAIN = _codes("BL MF")  # the data give that of Guadeloupe

# The word that makes a currency's name full ("ARS" is the Argentine peso), for those that have one.
_ORIGINS = (
    "AED United Arab Emirates, ALL Albanian, AMD Armenian, AOA Angolan, ARS Argentine, AUD "
    "Australian, AWG Aruban, AZN Azerbaijani, BAM Bosnia and Herzegovina, BBD Barbadian, BDT Bangladeshi, "
    "BHD Bahraini, BIF Burundian, BMD Bermudian, BND Brunei, BRL Brazilian, BSD Bahamian, "
    "BTN Bhutanese, BWP Botswana, BYN Belarusian, BZD Belize, CAD Canadian, CDF Congolese, CHF Swiss, CLP "
    "Chilean, CNY Chinese, COP Colombian, CRC Costa Rican, CUP Cuban, CVE Cape Verdean, CZK Czech, DJF "
    "Djiboutian, DKK Danish, DOP Dominican, DZD Algerian, EGP Egyptian, ERN Eritrean, ETB Ethiopian, FJD "
    "Fijian, FKP Falkland Islands, GBP British, GEL Georgian, GHS Ghanaian, GIP Gibraltar, GMD Gambian, "
    "GNF Guinean, GTQ Guatemalan, GYD Guyanese, HKD Hong Kong, HNL Honduran, HTG Haitian, HUF Hungarian, "
    "IDR Indonesian, ILS Israeli, INR Indian, IQD Iraqi, IRR Iranian, ISK Icelandic, JMD Jamaican, JOD "
    "Jordanian, JPY Japanese, KES Kenyan, KGS Kyrgyzstani, KHR Cambodian, KMF Comorian, KPW North Korean, "
    "KRW South Korean, KWD Kuwaiti, KYD Cayman Islands, KZT Kazakhstani, LAK Lao, LBP Lebanese, LKR Sri "
    "Lankan, LRD Liberian, LYD Libyan, MAD Moroccan, MDL Moldovan, MGA Malagasy, MKD Macedonian, MMK "
    "Myanmar, MNT Mongolian, MOP Macanese, MRU Mauritanian, MUR Mauritian, MVR Maldivian, MWK Malawian, "
    "MXN Mexican, MYR Malaysian, MZN Mozambican, NAD Namibian, NGN Nigerian, NIO Nicaraguan, NOK "
    "Norwegian, NPR Nepalese, NZD New Zealand, OMR Omani, PEN Peruvian, PGK Papua New Guinean, PHP "
    "Philippine, PKR Pakistani, PLN Polish, PYG Paraguayan, QAR Qatari, RON Romanian, RSD Serbian, RUB "
    "Russian, RWF Rwandan, SAR Saudi, SBD Solomon Islands, SCR Seychellois, SDG Sudanese, SEK Swedish, "
    "SGD Singapore, SHP Saint Helena, SLE Sierra Leonean, SOS Somali, SRD Surinamese, SSP South Sudanese, "
    "STN São Tomé and Príncipe, SYP Syrian, SZL Swazi, THB Thai, TJS Tajikistani, TMT Turkmenistan, TND "
    "Tunisian, TOP Tongan, TRY Turkish, TTD Trinidad and Tobago, TWD New Taiwan, TZS Tanzanian, UAH "
    "Ukrainian, UGX Ugandan, USD United States, UYU Uruguayan, UZS Uzbekistani, VES Venezuelan, VND "
    "Vietnamese, VUV Vanuatu, WST Samoan, XAF Central African CFA, XCD East Caribbean, XCG Caribbean, XOF "
    "West African CFA, XPF CFP, YER Yemeni, ZAR South African, ZMW Zambian"
)
CURRENCY_ORIGINS = dict(entry.split(" ", 1) for entry in _ORIGINS.split(", "))

# The short name where the data's is not the usual one.
CURRENCY_NAMES = {
    "BAM": "Convertible mark",
    "BYN": "Ruble",
    "CNY": "Yuan",
    "KHR": "Riel",
    "QAR": "Riyal",
    "SAR": "Riyal",
    "VES": "Bolívar",
}

CURRENCY_ALIASES: dict[str, tuple[str, ...]] = {
    "AED": ("UAE dirham", "Emirati dirham"),
    "AFN": ("Afghan afghani",),
    "AWG": ("Aruban florin", "Florin"),
    "BAM": ("Bosnian convertible mark", "Bosnian mark", "Marka", "Mark"),
    "BOB": ("Bolivian boliviano",),
    "BYN": ("Belarusian rouble", "Rouble"),
    "CNY": ("Renminbi", "Yuan Renminbi", "RMB"),
    "CRC": ("Colón", "Costa Rican colón"),
    "EUR": ("Euros",),
    "GBP": ("Pound sterling", "Sterling", "Great British pound"),
    "ILS": ("New shekel", "Israeli new shekel"),
    "KHR": ("Riels",),
    "KGS": ("Kyrgyz som",),
    "KZT": ("Kazakh tenge",),
    "MMK": ("Burmese kyat",),
    "MNT": ("Tögrög", "Mongolian tögrög"),
    "NIO": ("Córdoba", "Nicaraguan córdoba"),
    "PEN": ("Nuevo sol",),
    "PLN": ("Złoty", "Polish złoty"),
    "PYG": ("Guaraní", "Paraguayan guaraní"),
    "RUB": ("Rouble", "Russian rouble"),
    "SAR": ("Saudi Arabian riyal", "Saudi rial", "Rial"),
    "QAR": ("Qatari rial", "Rial"),
    "SZL": ("Emalangeni",),
    "TJS": ("Tajik somoni",),
    "TMT": ("Turkmen manat",),
    "TOP": ("Pa\u02bbanga",),
    "TWD": ("Taiwan dollar", "Taiwanese dollar"),
    "USD": ("US dollar", "U.S. dollar", "American dollar"),
    "UZS": ("Uzbek som",),
    "VES": ("Bolivar", "Bolivar Soberano", "Venezuelan bolivar"),
    "VND": ("Đồng", "Vietnamese đồng"),
    "WST": ("Tālā",),
    "XAF": ("CFA franc",),
    "XCG": ("Netherlands Antillean guilder",),
    "XOF": ("CFA franc",),
}
